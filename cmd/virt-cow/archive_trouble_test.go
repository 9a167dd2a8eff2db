//go:build !virtcow_lean

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What is asked of an archive that has no such backup, can't be opened or is damaged: each is said clearly, and nothing is left of what was
// to be written.
func TestArchiveTrouble(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	config, backup := b.archived()
	run := func(args ...string) outcome { return b.run(append([]string{"--config", config}, args...)...) }
	none := func() {
		t.Helper()
		for _, name := range []string{"out", "out.part"} {
			if _, err := os.Lstat(b.path(name)); err == nil {
				t.Errorf("%s is left", name)
			}
		}
	}
	reads := func(backup, disk string) [][]string {
		return [][]string{
			{"restore", "disk", backup, disk, "out"}, {"backup", "export", backup, disk, "out"},
			{"backup", "export", backup, disk, "out", "--format", "qcow2"}, {"backup", "serve", backup, disk, "--socket", b.path("s")},
		}
	}

	try := func(commands [][]string, says ...string) {
		t.Helper()
		for _, args := range commands {
			t.Log(run(args...).exits(exitFailed).says(says...).stderr)
			none()
		}
	}
	const unknown = "0123456789abcdef0123456789abcdef"
	try(append(reads(unknown, "vda"), []string{"backup", "show", "nosuch"}, []string{"backup", "verify", "../x"}, []string{"backup", "delete", unknown, "--yes"}),
		"virt-cow backup list")
	try(reads(backup, "vdz")[:1], "vdz", "vda")
	some := [][]string{reads(backup, "vda")[0], {"backup", "list"}, {"archive", "check"}}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(b.path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("passphrase", "wrong horse\n")
	try(some, "passphrase", b.path("archive"))
	if err := os.Remove(b.path("passphrase")); err != nil {
		t.Fatal(err)
	}
	try(some, b.path("passphrase"))
	write("passphrase", "correct horse\n")
	if err := os.Rename(b.path("archive"), b.path("away")); err != nil {
		t.Fatal(err)
	}
	try(some, b.path("archive"))
	if err := os.Mkdir(b.path("archive"), 0o700); err != nil {
		t.Fatal(err)
	}
	try(some, b.path("archive"), "archive create")
	if err := os.Remove(b.path("archive")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(b.path("away"), b.path("archive")); err != nil {
		t.Fatal(err)
	}
	run("backup", "verify", backup).exits(0)

	b.spoil()
	const where = "disk vda, bytes 0 to 1048575"
	t.Log(run("backup", "verify", backup).exits(exitVerify).says(where, ": damaged,").stderr)
	for _, args := range reads(backup, "vda")[:3] {
		t.Log(run(args...).exits(exitFailed).says(where, "--skip-bad").stderr)
		none()
		t.Log(run(append(args, "--skip-bad")...).exits(exitDegraded).says(where, "zeros").stderr)
		if err := os.Remove(b.path("out")); err != nil {
			t.Error(err)
		}
	}
}

// spoil damages the pack that has the disk of the backup in archived.
func (b *bench) spoil() {
	b.t.Helper()
	var oldest string
	var made time.Time
	if err := filepath.Walk(b.path("archive/p"), func(path string, st fs.FileInfo, err error) error {
		if err == nil && st.Mode().IsRegular() && (oldest == "" || st.ModTime().Before(made)) {
			oldest, made = path, st.ModTime()
		}
		return err
	}); err != nil {
		b.t.Fatal(err)
	}
	pack, err := os.ReadFile(oldest)
	if err != nil {
		b.t.Fatal(err)
	}
	for i := range pack {
		pack[i] ^= 1
	}
	if err := os.WriteFile(oldest, pack, 0o600); err != nil {
		b.t.Fatal(err)
	}
}
