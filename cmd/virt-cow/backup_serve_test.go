//go:build !virtcow_lean

package main

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/archive"
)

// Files of a backup are got as docs/OPERATIONS.md says: its disk is served, nbdfuse makes a file of it, and that is mounted.
func TestServeFiles(t *testing.T) {
	t.Parallel()
	need(t, "root", "mkfs.ext4", "nbdfuse", "losetup", "mount", "qemu-img")
	b := newBench(t)
	config, _ := b.archived()
	const size, first = 16 * mib, mib // a partition with a file system in it
	if err := os.MkdirAll(b.path("tree/etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.file("tree/etc/hostname", "web1\n")
	b.truncate("fs", size-first)
	b.must("mkfs.ext4", "-q", "-F", "-d", "tree", "fs")
	disk := append(make([]byte, first), b.read("fs")...)
	disk[450] = 0x83 // type of the first partition of four; its first sector and its length follow
	binary.LittleEndian.PutUint32(disk[454:], first/512)
	binary.LittleEndian.PutUint32(disk[458:], (size-first)/512)
	disk[510], disk[511] = 0x55, 0xaa
	backup := b.store(disk)

	run := func(args ...string) *server {
		s := &server{b: b, done: make(chan struct{})}
		s.cmd = b.command(context.Background(), args[0], args[1:]...)
		s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
		if err := s.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { _ = s.cmd.Wait(); close(s.done) }()
		t.Cleanup(func() { _ = s.cmd.Process.Kill(); <-s.done })
		return s
	}
	serve := run(program, "--config", config, "backup", "serve", backup, "vda", "--socket", b.path("look.sock"))
	eventually(t, "it is served", func() bool { return strings.Contains(serve.log.String(), "until Ctrl-C") })
	uri := "nbd+unix:///?socket=" + b.path("look.sock")
	if info := b.must("qemu-img", "info", uri); !strings.Contains(info, "16 MiB") {
		t.Error(info)
	}
	for _, dir := range []string{"look", "mnt"} {
		if err := os.Mkdir(b.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	fuse := run("nbdfuse", "-r", b.path("look"), uri)
	t.Cleanup(func() { _ = syscall.Unmount(b.path("look"), syscall.MNT_DETACH) })
	eventually(t, "there is a file", func() bool {
		_, err := os.Stat(b.path("look/nbd"))
		return err == nil
	})
	loop := strings.TrimSpace(b.must("losetup", "--find", "--show", "--read-only", "--offset", "1048576", b.path("look/nbd")))
	detach := b.detaches(loop)
	b.must("mount", "-o", "ro,noload", loop, b.path("mnt"))
	t.Cleanup(func() { b.exec("umount", b.path("mnt")) })
	if got := string(b.read("mnt/etc/hostname")); got != "web1\n" {
		t.Errorf("%q", got)
	}
	b.must("umount", b.path("mnt"))
	detach()
	b.must("umount", b.path("look"))
	<-fuse.done
	if err := serve.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-serve.done
	if code := serve.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("%d: %s", code, &serve.log)
	}
	if _, err := os.Lstat(filepath.Join(b.dir, "look.sock")); err == nil {
		t.Error("the socket is left")
	}
}

// store puts a disk into the archive of archived.
func (b *bench) store(content []byte) (backup string) {
	b.t.Helper()
	c := archive.Config{URI: b.path("archive"), PassphraseFile: b.path("passphrase"), Log: zerolog.Nop()}
	ctx := b.t.Context()
	try := func(err error) {
		b.t.Helper()
		if err != nil {
			b.t.Fatal(err)
		}
	}
	a, err := archive.Open(ctx, c)
	try(err)
	defer a.Close(ctx)
	w, err := a.Begin(ctx, archive.Meta{Domain: "g", Host: "hv1", Job: "files", Time: time.Now()})
	try(err)
	d, err := w.Disk("vda", int64(len(content)), mib)
	try(err)
	for i := range d.Pieces() {
		try(d.Write(ctx, i, content[i*mib:(i+1)*mib]))
	}
	backup, err = w.Finish(ctx, []byte("{}"))
	try(err)
	return backup
}
