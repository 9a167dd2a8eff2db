package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/virt-cow/virt-cow/internal/completion"
	"github.com/virt-cow/virt-cow/internal/config"
)

func (b *bench) file(name, text string) string {
	b.t.Helper()
	if err := os.WriteFile(b.path(name), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return b.path(name)
}

func TestConfigCommands(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	bad := b.file("bad.toml", "[libvirt]\nsokcet = \"/x\"\n[hook]\ntimeout = 9\n")
	good := b.file("good.toml", "log_dir = \"/logs\"\n")
	example := b.file("example.toml", b.run("config", "example").exits(0).stdout)
	b.run("config", "check", example).exits(0).says("ok: " + example)
	b.run("config", "check", bad).exits(exitVerify).says("bad.toml:2: libvirt.sokcet is not known; did you mean socket?", "bad.toml:4: hook.timeout", "2 errors")
	b.run("--config", good, "config", "check").exits(0).says("ok: " + good)
	b.run("config", "check", b.path("missing.toml")).exits(exitVerify).says("no such file")
	var checked struct {
		OK       bool
		Problems []config.Problem
	}
	b.run("--json", "config", "check", bad).exits(exitVerify).json(&checked)
	if checked.OK || len(checked.Problems) < 2 || checked.Problems[0].Line != 2 {
		t.Errorf("%+v", checked)
	}
	b.run("--config", good, "--run-dir", "/run/x", "config", "show").exits(0).says(
		`run_dir = "/run/x"`, "# flag --run-dir", `log_dir = "/logs"`, "# "+good+":1", `hook.timeout = "45s"`, "# default")
	b.run("config", "show").exits(0).says("# env VIRT_COW_RUN_DIR")
	b.run("--config", bad, "config", "show").exits(exitVerify).says("sokcet")
	var shownAll struct{ Values []shown }
	b.run("--config", good, "config", "show", "--json").exits(0).json(&shownAll)
	if len(shownAll.Values) != len(config.Keys()) {
		t.Errorf("%+v", shownAll)
	}
	for _, args := range [][]string{{"status"}, {"daemon"}, {"detach", "g", "v"}} {
		b.run(append([]string{"--config", bad}, args...)...).exits(exitUsage).says("bad.toml:2", "virt-cow config check")
		b.run(append([]string{"--config", b.path("missing.toml")}, args...)...).exits(exitUsage).says("missing.toml: no such file")
	}
	// What serves guests goes on whatever the file says.
	b.image("m.raw", mib)
	b.clone("c.vcow", "m.raw")
	b.serve("c.vcow", "--config", bad).stop()
}

// walk calls f for every command that is not hidden.
func walk(n *kong.Node, f func(*kong.Node)) {
	for _, c := range n.Children {
		if !c.Hidden {
			f(c)
			walk(c, f)
		}
	}
}

func model(t *testing.T) *kong.Kong {
	t.Helper()
	return newParser(&cli{}, os.Stdout, os.Stderr, func(int) {})
}

func TestEveryCommandHasExamplesThatParse(t *testing.T) {
	t.Parallel()
	used := map[string]bool{"": true}
	walk(model(t).Model.Node, func(n *kong.Node) {
		if n.Leaf() {
			used[n.Path()] = true
			if len(examples[n.Path()]) == 0 {
				t.Errorf("%s has no example: see examples.go", n.Path())
			}
			if n.ClosestGroup() == nil {
				t.Errorf("%s is in no group: see main.go", n.Path())
			}
		}
		if n.Help == "" || !strings.HasSuffix(n.Help, ".") {
			t.Errorf("%s: help %q", n.Path(), n.Help)
		}
		for _, f := range n.Flags {
			if !f.Hidden && f.Help == "" {
				t.Errorf("%s --%s has no help", n.Path(), f.Name)
			}
		}
	})
	for path, lines := range examples {
		if !used[path] {
			t.Errorf("examples of %q, which is no command", path)
		}
		for _, line := range lines {
			words := completion.Split(line)
			for i, w := range words {
				if w == ">" || w == ">>" || w == "<" || w == "|" {
					words = words[:i]
					break
				}
			}
			k, err := model(t).Parse(words[1:])
			if err != nil || words[0] != "virt-cow" || path != "" && k.Selected().Path() != path {
				t.Errorf("%s: %v", line, err)
			}
		}
	}
}

func TestManPages(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run("man", b.path("man")).exits(0)
	pages, err := filepath.Glob(b.path("man/*.1"))
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	for _, p := range pages {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		have[filepath.Base(p)] = string(text)
	}
	walk(model(t).Model.Node, func(n *kong.Node) {
		page := have[strings.ReplaceAll(n.FullPath(), " ", "-")+".1"]
		if page == "" || n.Leaf() && !strings.Contains(page, ".SH EXAMPLES") {
			t.Errorf("%s has no page with examples", n.FullPath())
		}
		for _, f := range n.Flags {
			if !f.Hidden && !strings.Contains(page, strings.ReplaceAll(f.Name, "-", `\-`)) {
				t.Errorf("%s: no --%s", n.FullPath(), f.Name)
			}
		}
	})
	for _, section := range []string{"NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"} {
		if !strings.Contains(have["virt-cow.1"], ".SH "+section+"\n") {
			t.Errorf("no section %s", section)
		}
	}
	t.Run("mandoc", func(t *testing.T) {
		need(t, "mandoc")
		b := &bench{t, b.dir}
		if out := b.must("mandoc", append([]string{"-Tlint", "-W", "warning"}, pages...)...); out != "" {
			t.Error(out)
		}
	})
	t.Run("groff", func(t *testing.T) {
		need(t, "groff")
		b := &bench{t, b.dir}
		for _, p := range pages {
			if o := b.exec("groff", "-ww", "-man", "-Tutf8", "-z", p).exits(0); o.stderr != "" {
				t.Error(o.stderr)
			}
		}
	})
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.stage(wellStatus())
	none := b.file("c.toml", "[libvirt]\nsocket = \""+b.path("no.sock")+"\"\n")
	b.run("--config", none, "doctor").exits(exitDegraded).says("PROBLEM  libvirt: there is no", "mend: systemctl enable --now libvirtd.socket", "WARNING  daemon: it is version v1")
	var found struct {
		OK       bool
		Findings []struct{ Check, Result, Seen, Why, Mend string }
	}
	b.run("--config", none, "doctor", "--json").exits(exitDegraded).json(&found)
	if found.OK || len(found.Findings) < 15 {
		t.Errorf("%+v", found)
	}
	if hook := b.run("doctor", "--print-hook").exits(0).stdout; !strings.HasPrefix(hook, "#!/bin/sh\n") {
		t.Errorf("%q", hook)
	}
	b.run("--config", b.file("bad.toml", "x"), "doctor").exits(exitDegraded).says("PROBLEM  configuration:", "bad.toml:1")
}
