//go:build !virtcow_lean

package main

import (
	"os"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/archive"
)

// archived is a configuration file with an archive in it that has a backup of one disk, of a piece.
func (b *bench) archived() (config, backup string) {
	b.t.Helper()
	c := archive.Config{URI: b.path("archive"), PassphraseFile: b.path("passphrase"), Log: zerolog.Nop()}
	config = b.path("config.toml")
	for path, text := range map[string]string{
		c.PassphraseFile: "correct horse\n",
		config:           "[archive]\nuri = \"" + c.URI + "\"\ncache = \"" + b.path("cache") + "\"\npassphrase_file = \"" + c.PassphraseFile + "\"\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
	ctx := b.t.Context()
	try := func(err error) {
		if err != nil {
			b.t.Fatal(err)
		}
	}
	try(archive.Create(ctx, c))
	a, err := archive.Open(ctx, c)
	try(err)
	defer a.Close(ctx)
	w, err := a.Begin(ctx, archive.Meta{Domain: "g", Host: "hv1", Job: "j", Time: time.Now()})
	try(err)
	d, err := w.Disk("vda", mib, mib)
	try(err)
	data := make([]byte, mib)
	copy(data, "the disk")
	try(d.Write(ctx, 0, data))
	_, err = w.Checkpoint(ctx) // what comes now is in other packs
	try(err)
	backup, err = w.Finish(ctx, []byte("{}"))
	try(err)
	return config, backup
}

// What is restored is as secret as the disk was, and nothing is written over that another host has open.
func TestRestore(t *testing.T) {
	t.Parallel()
	need(t, "root", "qemu-img")
	b := newBench(t)
	config, backup := b.archived()
	run := func(args ...string) outcome { return b.run(append([]string{"--config", config}, args...)...) }
	run("restore", "disk", backup, "vda", "new").exits(0)
	run("restore", "disk", backup, "vda", "new").exits(exitFailed).says("is there already")
	run("backup", "export", backup, "vda", "image", "--format", "qcow2").exits(0)
	for _, name := range []string{"new", "image"} {
		if st, err := os.Stat(b.path(name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, st.Mode(), err)
		}
	}
	qemu, err := os.Open(b.path("new"))
	if err != nil {
		t.Fatal(err)
	}
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: 100, Len: 1} // as QEMU locks an image that it has open
	if err := unix.FcntlFlock(qemu.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	run("restore", "disk", backup, "vda", "new", "--force").exits(exitLocked).says("a QEMU")
	qemu.Close()
	run("restore", "disk", backup, "vda", "new", "--force").exits(0)
	if err := os.WriteFile(b.path("other.part"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	run("backup", "export", backup, "vda", "other", "--format", "qcow2").exits(exitFailed).says("remove it")

	b.truncate("lun", 8*mib)
	lun := b.loop("lun")
	b.run("store", "create", "--size", "1M", "--name", "v", lun).exits(0)
	b.serve(lun, "--host-uuid", "11111111-2222-3333-4444-555555555555").kill()
	before := b.read("lun")
	run("restore", "disk", backup, "vda", lun, "--force").exits(exitLocked).says("open on another host")
	if string(before) != string(b.read("lun")) {
		t.Fatal("what was refused changed the store")
	}
	b.run("store", "create", "--size", "1M", "--name", "w", "--force", "--host-gone", "11111111-2222-3333-4444-555555555555", lun).exits(0)
	run("restore", "disk", backup, "vda", lun, "--force").exits(0)
	if got := string(b.read("lun")[:8]); got != "the disk" {
		t.Errorf("%q", got)
	}
}
