package main

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// shellBench has each shell's script in a file.
func shellBench(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script := b.run("completion", shell).exits(0).stdout
		if err := os.WriteFile(b.path(shell), []byte(script), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// withProgram is a PATH with the program in it.
func withProgram() string {
	return "PATH=" + program[:strings.LastIndexByte(program, '/')] + ":" + os.Getenv("PATH")
}

// completes types what is to be completed, and returns the next mark. Names are waited for a second, which is too little now and then
// on a busy machine: then it is typed again.
func (term *terminal) completes(since int, typed, want string) int {
	term.t.Helper()
	for range 10 {
		term.types(typed)
		for range 500 {
			if out := term.output()[since:]; strings.Contains(out, want) {
				since += strings.Index(out, want) + len(want)
				term.types("\x15") // Ctrl-U: an empty line
				return since
			}
			time.Sleep(10 * time.Millisecond)
		}
		term.types("\x15")
	}
	term.t.Fatalf("%q brings no %q in what ends with %q", typed, want, term.output()[since:])
	return since
}

// TestCompletionInBash types into a real bash on a terminal.
func TestCompletionInBash(t *testing.T) {
	t.Parallel()
	need(t, "bash")
	b := shellBench(t)
	s := b.stage(wellStatus())
	s.on(api.PathVolumes, answer(api.VolumeList{Volumes: []api.VolumeInfo{{Name: "data-of.web1"}}}))
	if err := os.WriteFile(b.path("some file.cow"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := b.command(t.Context(), "bash", "--norc", "--noprofile", "-i")
	cmd.Env = append(cmd.Env, withProgram(), "PS1=ready> ", "INPUTRC=/dev/null", "HOME="+b.dir)
	term := b.onTerminal(200, 20, cmd)
	mark := term.shows(0, "ready>")
	term.types(". ./bash; bind 'set bell-style none'\n")
	term.shows(mark, "ready>")
	mark = len(term.output())
	for typed, want := range map[string]string{
		"virt-cow compl\tz\t":                 "virt-cow completion zsh",
		"virt-cow status --wa\t":              "virt-cow status --watch",
		"virt-cow hydrate start d\t":          "virt-cow hydrate start data-of.web1",
		"virt-cow store info so\t":            `virt-cow store info some\ file.cow`,
		"virt-cow serve --socket=so\t":        `virt-cow serve --socket=some\ file.cow`,
		"virt-cow --run-dir run detach g d\t": "virt-cow --run-dir run detach g data-of.web1",
	} {
		mark = term.completes(mark, typed, want)
	}
}

// TestCompletionInZsh types into a real zsh on a terminal.
func TestCompletionInZsh(t *testing.T) {
	t.Parallel()
	need(t, "zsh")
	b := shellBench(t)
	s := b.stage(wellStatus())
	s.on(api.PathVolumes, answer(api.VolumeList{Volumes: []api.VolumeInfo{{Name: "data-of.web1"}}}))
	cmd := b.command(t.Context(), "zsh", "-f", "-i")
	cmd.Env = append(cmd.Env, withProgram(), "HOME="+b.dir, "ZDOTDIR="+b.dir)
	term := b.onTerminal(200, 30, cmd)
	term.types("PS1='ready> '; unsetopt beep; . ./zsh; setopt no_prompt_sp; print sour''ced\n")
	mark := term.shows(0, "sourced")
	mark = term.shows(mark, "ready>")
	for _, c := range [][2]string{
		{"virt-cow st\t", "Make and examine stores."}, // a list with descriptions
		{"virt-cow compl\tz\t", "zsh"},
		{"virt-cow detach g d\t", "data-of.web1"},
		{"virt-cow serve --lock\t", "--lock-wait"},
	} {
		mark = term.completes(mark, c[0], c[1])
	}
}

// completesInFish asks fish until it offers all of these: names are waited for a second only.
func (b *bench) completesInFish(line string, want ...string) {
	b.t.Helper()
	eventually(b.t, line+": "+strings.Join(want, ", "), func() bool {
		out := b.must("env", "HOME="+b.dir, "XDG_CONFIG_HOME="+b.dir, withProgram(), "fish", "--no-config", "-c", "source ./fish; complete -C '"+line+"'")
		return !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(out, w) })
	})
}

func TestCompletionInFish(t *testing.T) {
	t.Parallel()
	need(t, "fish")
	b := shellBench(t)
	s := b.stage(wellStatus())
	s.on(api.PathVolumes, answer(api.VolumeList{Volumes: []api.VolumeInfo{{Name: "data-of.web1", Store: "/s/d"}}}))
	if err := os.WriteFile(b.path("some.cow"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"virt-cow st":                  "store\tMake and examine stores.",
		"virt-cow completion ":         "bash\nfish\nzsh",
		"virt-cow hydrate start ":      "data-of.web1\t0 B, /s/d",
		"virt-cow status --w":          "--watch\tShow a live table",
		"virt-cow store info so":       "some.cow",
		"virt-cow serve --socket=so":   "--socket=some.cow",
		"virt-cow --run-dir=run stat":  "status\t",
		"virt-cow completion bash --j": "--json\tPrint JSON.",
	} {
		words := []string{want}
		if want == "bash\nfish\nzsh" {
			words = strings.Fields(want)
		}
		b.completesInFish(line, words...)
	}
}
