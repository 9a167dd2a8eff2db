package completion

import (
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

type grammar struct {
	JSON   bool   `name:"json" help:"Print JSON."`
	Dir    string `type:"existingdir"`
	Mode   string `enum:"on,off" default:"on"`
	Attach struct {
		Domain string   `arg:"" complete:"domain"`
		Volume []string `arg:"" optional:"" complete:"volume"`
		Store  string   `type:"path"`
		Rate   string   `short:"r"`
	} `cmd:"" help:"Attach it."`
	Store struct {
		Create struct{} `cmd:""`
		Check  struct {
			File string `arg:"" complete:"file"`
		} `cmd:""`
	} `cmd:""`
	Secret struct{} `cmd:"" hidden:""`
}

func names(kind string, flags map[string]string) []Candidate {
	return []Candidate{{kind + "1" + flags["dir"], "one"}, {kind + " 2", "two"}}
}

func TestComplete(t *testing.T) {
	app := kong.Must(&grammar{}).Model
	for _, c := range []struct {
		line  string
		want  string
		paths Paths
	}{
		{"", "attach store", NoPaths},
		{"a", "attach", NoPaths},
		{"s", "store", NoPaths},
		{"x", "", NoPaths},
		{"store ", "create check", NoPaths},
		{"store c", "create check", NoPaths},
		{"store create ", "--help --json --dir --mode", NoPaths},
		{"store check ", "", Files},
		{"--", "--help --json --dir --mode", NoPaths},
		{"--json --", "--help --dir --mode", NoPaths},
		{"--j", "--json", NoPaths},
		{"--mode ", "on off", NoPaths},
		{"--mode o", "on off", NoPaths},
		{"--mode=of", "--mode=off", NoPaths},
		{"--dir ", "", Folders},
		{"--dir=x", "", Folders},
		{"--nope=x", "", NoPaths},
		{"--dir /x attach ", "domain1/x domain 2", NoPaths},
		{"--dir=/y attach ", "domain1/y domain 2", NoPaths},
		{"attach domain1 ", "volume1 volume 2", NoPaths},
		{"attach domain1 v w x volume1", "volume1", NoPaths},
		{"attach -r 5 domain1 ", "volume1 volume 2", NoPaths},
		{"attach --store ", "", Files},
		{"attach --store x domain1 --st", "", NoPaths},
		{"attach --store=x", "", Files},
		{"attach -- ", "domain1 domain 2", NoPaths},
		{"attach -- --x", "", NoPaths},
		{"attach --json d", "domain1 domain 2", NoPaths},
	} {
		found, paths := Complete(app, Split(c.line), names)
		var words []string
		for _, f := range found {
			words = append(words, f.Word)
		}
		if got := strings.Join(words, " "); got != c.want || paths != c.paths {
			t.Errorf("%q: %q %s, want %q %s", c.line, got, paths, c.want, c.paths)
		}
	}
	if found, _ := Complete(app, nil, nil); len(found) != 2 {
		t.Error(found)
	}
}

func TestSplit(t *testing.T) {
	for line, want := range map[string][]string{
		"":            {""},
		"a":           {"a"},
		"a ":          {"a", ""},
		"a  b":        {"a", "b"},
		`a\ b c`:      {"a b", "c"},
		`'a b' "c d"`: {"a b", "c d"},
		`'a\' x`:      {`a\`, "x"},
		`"a\"b`:       {`a"b`},
		`a '' b`:      {"a", "", "b"},
		`--x="a b`:    {"--x=a b"},
		`trailing\`:   {"trailing"},
		"ü\tñ":        {"ü", "ñ"},
	} {
		if got := Split(line); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestAnswer(t *testing.T) {
	give := func(found ...Candidate) func([]string) ([]Candidate, Paths) {
		return func([]string) ([]Candidate, Paths) { return found, NoPaths }
	}
	for _, c := range []struct {
		args []string
		with []Candidate
		want string
	}{
		{nil, nil, ""},
		{[]string{"bash"}, nil, "words\n"},
		{[]string{"bash", "p --mode=o", "=:"}, []Candidate{{"--mode=on", "h"}}, "words\non\n"},
		{[]string{"bash", "p --mode=o", " "}, []Candidate{{"--mode=on", "h"}}, "words\n--mode=on\n"},
		{[]string{"bash", "p a:b", "=:"}, []Candidate{{"a:bc", ""}}, "words\nbc\n"},
		{[]string{"bash", "p "}, []Candidate{{"a b$(x)", ""}, {"new\nline", ""}}, "words\na\\ b\\$\\(x\\)\n"},
		{[]string{"zsh", "a"}, []Candidate{{"a", "two\nlines"}}, "words\na\ttwo lines\n"},
		{[]string{"fish", "a"}, []Candidate{{"tab\there", ""}, {"b", ""}}, "words\nb\t\n"},
	} {
		if got := Answer(c.args, give(c.with...)); got != c.want {
			t.Errorf("%q: %q, want %q", c.args, got, c.want)
		}
	}
	if Script("tcsh", "x") != "" || !strings.Contains(Script("bash", "virt-cow"), "complete -F _virt_cow virt-cow") {
		t.Error("scripts")
	}
}

func FuzzSplit(f *testing.F) {
	f.Add(`p a\ b 'c "d`)
	app := kong.Must(&grammar{}).Model
	f.Fuzz(func(t *testing.T, line string) {
		words := Split(line)
		if len(words) == 0 {
			t.Error("no last word")
		}
		Answer([]string{"bash", line, "=:"}, func(w []string) ([]Candidate, Paths) { return Complete(app, w, names) })
	})
}
