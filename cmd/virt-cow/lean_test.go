package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestLeanLinksNoArchive: each engine, and the hook at each start of a guest, would pay for it.
func TestLeanLinksNoArchive(t *testing.T) {
	for tag, want := range map[string]bool{"virtcow_lean": false, "virtcow_all": true} {
		out, err := exec.Command("go", "list", "-deps", "-tags", tag, ".").Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, pkg := range []string{"github.com/virt-cow/virt-cow/internal/archive\n", "github.com/kopia/kopia/"} {
			if got := strings.Contains(string(out), pkg); got != want {
				t.Errorf("with the tag %s the program links %s: %t", tag, strings.TrimSpace(pkg), got)
			}
		}
	}
}

// TestLean: the lean program says and takes what the full one does, and has that one run what it leaves out.
func TestLean(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.must("mkdir", "bin", "lib", "lib/virt-cow", "lean", "full")
	lean := b.path("bin/virt-cow")
	if out, err := exec.Command("go", "build", "-tags", "virtcow_lean", "-o", lean, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	b.must(lean, "man", "lean")
	b.must(program, "man", "full")
	b.must("diff", "-r", "full", "lean")
	b.exec(lean, "archive", "check", "--no-such").exits(2).says("virt-cow archive check --help")
	b.exec(lean, "archive", "check").exits(1).says(b.path("bin/virt-cow-full"), b.path("lib/virt-cow/virt-cow-full"))
	for _, place := range []string{"lib/virt-cow/virt-cow-full", "bin/virt-cow-full"} {
		if err := os.Symlink(program, b.path(place)); err != nil {
			t.Fatal(err)
		}
		b.exec("env", "VIRT_COW_ARCHIVE="+b.path("none"), "VIRT_COW_ARCHIVE_PASSPHRASE_FILE="+b.path("phrase"), lean, "archive", "check").exits(1).says(b.path("phrase"))
		b.exec(lean, "backup", "list", "web1").exits(2).says("no archive")
		if err := os.Remove(b.path(place)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAllCommandsRun: a command without its method would be passed on for ever, or to nobody.
func TestAllCommandsRun(t *testing.T) {
	var c cli
	for _, n := range newParser(&c, os.Stdout, os.Stderr, os.Exit).Model.Leaves(false) {
		if _, is := n.Target.Addr().Interface().(interface{ Run(*Env) error }); !is {
			t.Errorf("%s has no Run", n.FullPath())
		}
	}
}
