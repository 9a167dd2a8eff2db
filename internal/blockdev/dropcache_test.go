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
	f, err := os.OpenFile(strings.TrimSpace(string(backing)), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, want := make([]byte, 1<<20), make([]byte, 1<<20)
	for n := byte(1); bytes.Equal(got, want); n++ { // once more where a machine short of memory has dropped it itself
		if n == 100 {
			t.Fatal("the page cache had nothing to drop: this test shows nothing")
		}
		if _, err := d.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		want = bytes.Repeat([]byte{n}, 1<<20)
		if _, err := f.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := d.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
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
