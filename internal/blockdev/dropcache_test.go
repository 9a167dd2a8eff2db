package blockdev_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// What was written past this device's page cache, as another host does, is read after DropCache.
func TestDropCacheOfBlockDevice(t *testing.T) {
	path := loop(t, 512)
	backing, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(path), "loop/backing_file"))
	if err != nil {
		t.Fatal(err)
	}
	d := open(t, path, blockdev.FileOptions{ReadOnly: true})
	defer d.Close()
	got, want := make([]byte, 1<<20), bytes.Repeat([]byte{7}, 1<<20)
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(strings.TrimSpace(string(backing)), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, want) {
		t.Fatal("the page cache had nothing to drop: this test shows nothing")
	}
	if err := d.DropCache(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("stale after DropCache")
	}
}
