package man

import (
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

func TestEscape(t *testing.T) {
	for text, want := range map[string]string{
		"plain":            "plain",
		".TH x":            `\&.TH x`,
		"a\n.b\n\n'c":      "a\n\\&.b\n\\(aqc",
		`C:\n --x`:         `C:\en \-\-x`,
		"~`^":              `\(ti\(ga\(ha`,
		"größer …":         `gr\[u00F6]\[u00DF]er \[u2026]`,
		"tab\there\r\n  x": "tab here\nx",
	} {
		if got := escape(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestPages(t *testing.T) {
	var grammar struct {
		Level int `short:"l" help:"How much."`
		Make  struct {
			Thing struct {
				Name []string `arg:"" help:"Names."`
				Size string   `required:"" placeholder:"SIZE" help:"Size."`
				Old  bool     `hidden:""`
			} `cmd:"" help:"Make a thing."`
		} `cmd:"" help:"Make."`
		Secret struct{} `cmd:"" hidden:""`
	}
	b := Book{
		Version: "1", Date: time.Unix(0, 0), Help: func(v *kong.Value) string { return v.Help },
		Examples: map[string][]string{"make thing": {"prog make thing 'a'"}}, Exit: []Entry{{"0", "Well."}},
	}
	pages := b.Pages(kong.Must(&grammar, kong.Name("prog"), kong.Description("A program.")).Model)
	var names []string
	for _, p := range pages {
		names = append(names, p.Name)
	}
	if got := strings.Join(names, " "); got != "prog.1 prog-make.1 prog-make-thing.1" {
		t.Fatal(got)
	}
	for i, wants := range [][]string{
		{".TH \"PROG\" 1 \"1970-01-01\"", ".SH EXIT STATUS", `\fB\-l\fR, \fB\-\-level\fR=`, `\fBmake thing\fR`},
		{".SH COMMANDS", ".BR prog\\-make\\-thing (1)"},
		{`\fBprog make thing\fR \fIname\fR... \fB\-\-size\fR=\fISIZE\fR [\fIflags\fR]`, "prog make thing \\(aqa\\(aq", ".SH ARGUMENTS"},
	} {
		for _, want := range wants {
			if !strings.Contains(pages[i].Text, want) {
				t.Errorf("%s: no %q in\n%s", pages[i].Name, want, pages[i].Text)
			}
		}
		if strings.Contains(pages[i].Text, "old") || strings.Contains(pages[i].Text, "ecret") {
			t.Errorf("%s shows what is hidden", pages[i].Name)
		}
	}
}
