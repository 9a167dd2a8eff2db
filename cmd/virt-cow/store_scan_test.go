package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestStoreScan(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.must("mkdir", "sub", "stores")
	b.image("m.raw", mib)
	b.clone("stores/a.vcow", "m.raw")
	b.run("store", "create", "--size", "2M", "stores/b.vcow").exits(0)
	b.truncate("lun", 4*mib)
	lun := b.loop("lun")
	b.run("store", "create", "--size", "1M", "--name", "l", lun).exits(0)
	b.must("ln", "-s", lun, "by-name")
	b.must("ln", "-s", b.path("stores/a.vcow"), "stores/link")
	b.must("cp", "stores/a.vcow", "stores/d.vcow")
	raw := b.read("stores/d.vcow")
	for i := 100; i < mib; i += 4096 {
		raw[i] ^= 1
	}
	for name, text := range map[string]string{
		"stores/d.vcow": string(raw), "stores/notes.txt": "no store", "stores/.c.vcow.tmp": "being made",
	} {
		if err := os.WriteFile(b.path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []scanned
	b.run("--json", "store", "scan", "stores", lun, "by-name", "stores/link").exits(0).json(&got)
	if len(got) != 4 {
		t.Fatalf("%+v", got)
	}
	if s := got[0]; s.Name != "a" || s.Size != mib || s.Role != "clone" || s.Error != "" || len(s.Paths) != 2 || s.Master != "raw:"+b.path("m.raw") {
		t.Errorf("%+v", s)
	}
	if s := got[1]; s.Name != "b" || s.Path != b.path("stores/b.vcow") || s.UUID == "" || s.Created.IsZero() {
		t.Errorf("%+v", s)
	}
	if s := got[2]; s.Name != "" || !strings.Contains(s.Error, b.path("stores/d.vcow")) {
		t.Errorf("%+v", s)
	}
	if s := got[3]; s.Name != "l" || len(s.Paths) != 2 || s.Owner != nil {
		t.Errorf("%+v", s)
	}
	s := b.serve("stores/b.vcow")
	b.run("store", "scan", "stores").exits(0).says("3 stores", b.path("stores/a.vcow"))
	b.run("--json", "store", "scan", "stores/b.vcow").exits(0).json(&got)
	if len(got) != 1 || got[0].Owner == nil {
		t.Errorf("open, and not said so: %+v", got)
	}
	s.stop()
	b.run("store", "scan", "nowhere").exits(0).says("nowhere", "0 stores")
}

func TestStoreDelete(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.image("m.raw", mib)
	b.clone("a.vcow", "m.raw")
	b.run("store", "delete", "a.vcow").exits(exitUsage).says("--name")
	b.run("store", "delete", "--name", "b", "a.vcow").exits(exitFailed).says("holds volume a, not b")
	b.run("store", "delete", "--uuid", "5a5a5a5a-5a5a-4a5a-8a5a-5a5a5a5a5a5a", "a.vcow").exits(exitFailed).says("holds the store")
	b.must("ln", "-s", "a.vcow", "link")
	b.run("store", "delete", "--name", "a", "link").exits(exitUsage).says("symbolic link")
	s := b.serve("a.vcow")
	b.run("store", "delete", "--name", "a", "a.vcow").exits(exitLocked)
	s.stop()
	s = b.serve("a.vcow", "--host-uuid", "11111111-2222-3333-4444-555555555555")
	s.kill()
	b.run("store", "delete", "--name", "a", "a.vcow").exits(exitLocked).says("open on another host")
	b.serve("a.vcow", "--host-uuid", "11111111-2222-3333-4444-555555555555").stop()
	b.run("store", "delete", "--name", "a", "a.vcow").exits(0).says("volume a deleted")
	if _, err := os.Stat(b.path("a.vcow")); !os.IsNotExist(err) {
		t.Error("the file is still there: ", err)
	}
	b.run("store", "delete", "--name", "a", "a.vcow").exits(exitFailed).says("no such file")

	b.truncate("lun", 4*mib)
	lun := b.loop("lun")
	b.run("store", "create", "--size", "1M", "--name", "l", lun).exits(0)
	b.run("store", "delete", "--name", "l", lun).exits(0)
	b.run("store", "info", lun).exits(exitFailed).says("no header")
	b.run("store", "create", "--size", "1M", "--name", "again", lun).exits(0)
}

// A file system that never answers, as a LUN without paths: it is told of, and neither holds up the others nor keeps
// the program from ending.
func TestScanOfWhatHangs(t *testing.T) {
	t.Parallel()
	need(t, "root")
	b := newBench(t)
	b.run("store", "create", "--size", "1M", b.path("a.vcow")).exits(0)
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("SKIPPED: no FUSE to make a file system with that hangs: %v", err)
	}
	defer unix.Close(fuse) // which ends all who wait for it
	hung := b.path("hung")
	if err := os.Mkdir(hung, 0o700); err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fuse)
	if err := unix.Mount("virt-cow-test", hung, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Skipf("SKIPPED: can't mount FUSE: %v", err)
	}
	defer unix.Unmount(hung, unix.MNT_DETACH)
	var got []scanned
	paths := []string{hung + "/1", hung + "/2", b.path("a.vcow"), hung}
	b.run(append([]string{"--json", "store", "scan", "--timeout", "5s"}, paths...)...).exits(0).json(&got)
	if len(got) != 4 {
		t.Fatalf("%+v", got)
	}
	for i, s := range got {
		if ok := paths[i] == b.path("a.vcow"); s.Path != paths[i] || ok != (s.Error == "") || !ok && !strings.Contains(s.Error, "no answer in 5s") {
			t.Errorf("%+v", s)
		}
	}
}

func TestScanTellsOfDamage(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run("store", "create", "--size", "1M", b.path("one")).exits(0)
	b.run("store", "create", "--size", "1M", b.path("short")).exits(0)
	b.image("disk", mib)
	b.run("store", "create", "--raw", b.path("disk"), b.path("raw.state")).exits(0)
	b.poke("one", 90)
	b.truncate("short", 2*mib)
	b.must("mkfifo", b.path("fifo"))
	if err := os.Link(b.path("raw.state"), b.path("again.state")); err != nil {
		t.Fatal(err)
	}
	var got []scanned
	b.run("--json", "store", "scan", b.dir).exits(0).json(&got)
	by := map[string]scanned{}
	for _, s := range got {
		by[s.Name] = s
	}
	if s := by["one"]; s.Error != "" || len(s.Problems) != 1 || s.UUID == "" {
		t.Errorf("one damaged copy: %+v", s)
	}
	if s := by["short"]; !strings.Contains(s.Error, "truncated") || s.UUID == "" {
		t.Errorf("a truncated store: %+v", s)
	}
	if s := by["raw"]; s.Role != "state" || s.Origin != b.path("disk") || len(s.Paths) != 2 {
		t.Errorf("a state store under two names: %+v", s)
	}
	if len(got) != 3 {
		t.Errorf("%+v", got)
	}
	b.run("store", "scan", b.dir).exits(0).says("3 stores", "1 other thing", "header copy 0", "truncated")
}

// A store that another host has open is neither deleted nor overwritten, force or not, until an operator says that
// this host is gone.
func TestOwnedElsewhereIsLeftAlone(t *testing.T) {
	t.Parallel()
	need(t, "root")
	b := newBench(t)
	b.truncate("lun", 8*mib)
	lun := b.loop("lun")
	const other = "11111111-2222-3333-4444-555555555555"
	make := func() {
		b.run("store", "create", "--size", "1M", "--name", "v", lun).exits(0)
		b.serve(lun, "--host-uuid", other).kill()
	}
	make()
	before := b.read("lun")
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"serve", "--socket", b.path("s"), lun},
		{"store", "delete", "--name", "v", lun},
		{"store", "delete", "--yes", lun},
		{"store", "create", "--size", "1M", "--name", "w", "--force", lun},
	} {
		b.run(args...).exits(exitLocked).says("open on another host", host, other, " since 20")
	}
	b.run("store", "create", "--size", "1M", "--name", "w", lun).exits(exitFailed).says("of volume v, open on "+host+" since 20", "--force")
	b.run("store", "create", "--size", "1M", "--name", "w", "--force", "--host-gone", "21111111-2222-3333-4444-555555555555", lun).
		exits(exitFailed).says("is not the owner")
	if string(before) != string(b.read("lun")) {
		t.Fatal("what was refused changed the store")
	}
	b.run("store", "create", "--size", "1M", "--name", "w", "--force", "--host-gone", other, lun).exits(0)
	b.serve(lun).stop()
	b.run("store", "delete", "--name", "w", lun).exits(0)
	make()
	b.run("store", "delete", "--yes", "--host-gone", other, lun).exits(0)
	b.run("store", "info", lun).exits(exitFailed)
}
