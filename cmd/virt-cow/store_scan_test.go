package main

import (
	"os"
	"strings"
	"testing"
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
