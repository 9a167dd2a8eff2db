// Package man writes man pages from the model that also parses the command line and prints --help, so that they can't
// tell anything else: one for the program and one for each command.
package man

import (
	"fmt"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// Book is what the pages tell besides the model.
type Book struct {
	Version string
	Date    time.Time
	Help    func(*kong.Value) string // of a flag or an argument
	// Examples are command lines, by the path of their command without the program's name.
	Examples map[string][]string
	// The sections of the program's own page, to which the others refer.
	Exit, Environment, Files []Entry
	See                      []string // pages, such as virsh(1)
}

// Entry is one thing and what it is.
type Entry struct{ Name, Text string }

// Page is one file.
type Page struct{ Name, Text string }

// Pages makes all pages, the program's own first.
func (b *Book) Pages(app *kong.Application) []Page {
	pages := []Page{{app.Name + ".1", b.program(app)}}
	var walk func(n *kong.Node)
	walk = func(n *kong.Node) {
		for _, c := range n.Children {
			if !c.Hidden {
				pages = append(pages, Page{pageName(c) + ".1", b.command(app, c)})
				walk(c)
			}
		}
	}
	walk(app.Node)
	return pages
}

// pageName is virt-cow-store-create.
func pageName(n *kong.Node) string { return strings.ReplaceAll(n.FullPath(), " ", "-") }

type page struct{ strings.Builder }

// line writes a request or a line of text that is escaped already.
func (p *page) line(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

func (p *page) section(title string) { p.line(".SH %s", title) }

// entry is a paragraph with a hanging tag.
func (p *page) entry(tag, text string) {
	p.line(".TP\n%s", tag)
	if text == "" {
		text = "(no description)"
	}
	p.line("%s", escape(text))
}

func (b *Book) begin(name, help string) *page {
	p := &page{}
	p.line(`.TH "%s" 1 "%s" "virt-cow %s" "virt-cow"`, strings.ToUpper(escape(name)), b.Date.UTC().Format(time.DateOnly), escape(b.Version))
	p.section("NAME")
	p.line(`%s \- %s`, escape(name), escape(strings.TrimSuffix(help, ".")))
	return p
}

func (b *Book) program(app *kong.Application) string {
	p := b.begin(app.Name, app.Help)
	p.section("SYNOPSIS")
	p.line(`\fB%s\fR \fIcommand\fR [\fIflags\fR]`, escape(app.Name))
	p.section("DESCRIPTION")
	p.line("%s", escape(app.Help))
	p.section("COMMANDS")
	group := ""
	for _, n := range app.Leaves(true) {
		if g := n.ClosestGroup(); g != nil && g.Title != group {
			group = g.Title
			p.line(".SS %s", escape(strings.TrimSuffix(group, ":")))
		}
		p.entry(bold(n.Path()), n.Help)
	}
	p.section("OPTIONS")
	p.line("These are understood by all commands.")
	b.flags(p, app.Node)
	b.entries(p, "EXIT STATUS", b.Exit)
	b.entries(p, "ENVIRONMENT", b.Environment)
	b.entries(p, "FILES", b.Files)
	b.examples(p, "")
	see := append([]string{}, b.See...)
	for _, n := range app.Children {
		if !n.Hidden {
			see = append(see, pageName(n)+"(1)")
		}
	}
	p.see(see)
	return p.String()
}

func (b *Book) command(app *kong.Application, n *kong.Node) string {
	p := b.begin(pageName(n), n.Help)
	p.section("SYNOPSIS")
	p.line("%s", synopsis(n))
	p.section("DESCRIPTION")
	p.line("%s", escape(n.Help))
	if n.Detail != "" {
		p.line(".PP\n%s", escape(n.Detail))
	}
	see := []string{app.Name + "(1)"}
	if n.Parent != app.Node {
		see = append(see, pageName(n.Parent)+"(1)")
	}
	if len(n.Children) > 0 {
		p.section("COMMANDS")
		for _, c := range n.Children {
			if !c.Hidden {
				p.entry(bold(c.Name), c.Help)
				see = append(see, pageName(c)+"(1)")
			}
		}
	}
	if len(n.Positional) > 0 {
		p.section("ARGUMENTS")
		for _, a := range n.Positional {
			p.entry(italic(a.Name), b.Help(a))
		}
	}
	p.section("OPTIONS")
	b.flags(p, n)
	p.line(".PP\nThose that all commands understand are in\n.BR %s (1),\nand so are exit status, environment and files.", escape(app.Name))
	b.examples(p, n.Path())
	p.see(see)
	return p.String()
}

func synopsis(n *kong.Node) string {
	var t strings.Builder
	t.WriteString(bold(n.FullPath()))
	if len(n.Children) > 0 {
		t.WriteString(" " + italic("command"))
	}
	for _, a := range n.Positional {
		text := italic(a.Name)
		if a.IsCumulative() {
			text += "..."
		}
		if !a.Required {
			text = "[" + text + "]"
		}
		t.WriteString(" " + text)
	}
	for _, f := range n.Flags {
		if f.Required && !f.Hidden {
			t.WriteString(" " + flag(f))
		}
	}
	return t.String() + ` [\fIflags\fR]`
}

func (b *Book) flags(p *page, n *kong.Node) {
	for _, f := range n.Flags {
		if !f.Hidden {
			p.entry(flag(f), b.Help(f.Value))
		}
	}
	if n.Parent != nil && len(n.Flags) == 0 {
		p.line("It has none of its own.")
	}
}

// flag is -w, --watch or --size=SIZE.
func flag(f *kong.Flag) string {
	text := bold("--" + f.Name)
	if f.Short != 0 {
		text = bold("-"+string(f.Short)) + ", " + text
	}
	if !f.IsBool() && !f.IsCounter() {
		text += "=" + italic(strings.Trim(f.FormatPlaceHolder(), `"`))
	}
	return text
}

func (b *Book) entries(p *page, title string, entries []Entry) {
	if len(entries) == 0 {
		return
	}
	p.section(title)
	for _, e := range entries {
		p.entry(bold(e.Name), e.Text)
	}
}

func (b *Book) examples(p *page, path string) {
	if len(b.Examples[path]) == 0 {
		return
	}
	p.section("EXAMPLES")
	p.line(".nf")
	for _, e := range b.Examples[path] {
		p.line("%s", escape(e))
	}
	p.line(".fi")
}

func (p *page) see(pages []string) {
	p.section("SEE ALSO")
	for i, s := range pages {
		name, rest, _ := strings.Cut(s, "(")
		end := ","
		if i == len(pages)-1 {
			end = ""
		}
		p.line(".BR %s (%s%s", escape(name), rest, end)
	}
}

func bold(s string) string   { return `\fB` + escape(s) + `\fR` }
func italic(s string) string { return `\fI` + escape(s) + `\fR` }

// escape makes text of anything: no escape, no request at the beginning of a line, no blank line, and a hyphen that is
// a minus where it is copied.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, "\r", "", "\t", " ").Replace(s)
	var b strings.Builder
	for _, r := range s {
		if r < 0x7f {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\[u%04X]`, r)
		}
	}
	lines := strings.Split(b.String(), "\n")
	kept := lines[:0]
	for _, l := range lines {
		if l = strings.TrimSpace(l); l == "" {
			continue
		}
		if l[0] == '.' {
			l = `\&` + l
		}
		kept = append(kept, l)
	}
	return strings.Join(kept, "\n")
}
