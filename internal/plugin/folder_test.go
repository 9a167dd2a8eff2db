package plugin

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestList(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: files of other users need root")
	}
	s := newSite(t, deadline)
	chmod := func(path string, mode os.FileMode) {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, name string) {
		if err := os.Symlink(target, filepath.Join(s.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	open := filepath.Join(s.state, "open") // a folder in which anybody may put files
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	chmod(open, 0o777)
	outside := s.script(filepath.Join(s.state, "outside"), "exit 0")
	s.script(filepath.Join(open, "x"), "exit 0")
	if err := os.Symlink(outside, filepath.Join(open, "link")); err != nil {
		t.Fatal(err)
	}

	for _, name := range []string{"10-z", "9-a", "B", "a.sh", ".hidden", "a~", "#a#", "a.bak", "a.dpkg-old", "a.swp", "a.conf", "-rf"} {
		s.plugin(name, "exit 0")
	}
	s.plugin("with space", "exit 0")
	s.plugin(strings.Repeat("n", maxPluginName+1), "exit 0")
	if err := os.Mkdir(filepath.Join(s.dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	chmod(s.plugin("noexec", "exit 0"), 0o644)
	chmod(s.plugin("w-group", "exit 0"), 0o775)
	chmod(s.plugin("w-others", "exit 0"), 0o757)
	if err := os.Chown(s.plugin("w-user", "exit 0"), 12345, 0); err != nil {
		t.Fatal(err)
	}
	link(outside, "l-good")
	link("l-good", "l-twice")
	link(filepath.Join(open, "x"), "l-open")
	link(filepath.Join(open, "link"), "l-through")
	link("l-loop", "l-loop")
	link("/no/such", "l-dangling")
	link("../state/outside", "l-relative")
	link(s.state, "l-folder")
	if err := os.Symlink(outside, filepath.Join(s.dir, "l-foreign")); err != nil {
		t.Fatal(err)
	}
	if err := os.Lchown(filepath.Join(s.dir, "l-foreign"), 12345, 0); err != nil {
		t.Fatal(err)
	}

	list, err := List(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		switch {
		case e.Err == nil:
			got = append(got, e.Name)
		case !errors.Is(e.Err, ErrRefused):
			t.Errorf("%s: %v does not wrap ErrRefused", e.Name, e.Err)
		case e.Off:
			got = append(got, e.Name+":off")
		default:
			got = append(got, e.Name+":refused")
		}
		if strings.HasPrefix(e.Name, "l-") && e.Err == nil && e.Path != outside {
			t.Errorf("%s leads to %s", e.Name, e.Path)
		}
	}
	want := "-rf:off 10-z 9-a B a.sh l-dangling:refused l-folder:off l-foreign:refused l-good l-loop:refused l-open:refused " +
		"l-relative l-through:refused l-twice " + strings.Repeat("n", maxPluginName+1) + ":off noexec:off w-group:refused " +
		"w-others:refused w-user:refused with space:off"
	if strings.Join(got, " ") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, " "), want)
	}

	chmod(s.dir, 0o777)
	list, err = List(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Err == nil {
			t.Errorf("%s would be run from a folder that anybody may write", e.Name)
		}
	}
	if list, err := List(filepath.Join(s.dir, "none")); err != nil || list != nil {
		t.Errorf("a missing folder: %v, %v", list, err)
	}
}

// What can't be trusted is not run, holds as a guard, and is logged once.
func TestRefused(t *testing.T) {
	s := newSite(t, deadline)
	path := s.plugin("a", "touch $S/ran")
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		var veto *VetoError
		if err := s.runner.Ask(t.Context(), attach("v1")); !errors.As(err, &veto) || !strings.Contains(veto.Reason, "chmod go-w") {
			t.Fatalf("got %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(s.state, "ran")); err == nil {
		t.Error("it was run")
	}
	if n := strings.Count(s.log.String(), "plugin is not run"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	if err := os.Chmod(path, 0o644); err != nil { // switched off
		t.Fatal(err)
	}
	if err := s.runner.Ask(t.Context(), attach("v1")); err != nil {
		t.Error(err)
	}
}
