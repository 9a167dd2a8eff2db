package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// written is a clone of m.raw, c.vcow, that was written to at 70 KiB and closed.
func written(t *testing.T) (b *bench, master []byte, w []byte) {
	t.Helper()
	b = newBench(t)
	master = b.image("m.raw", mib)
	b.clone("c.vcow", "m.raw", "--chunk", "4K")
	w = noise(7, 10000&^511)
	s := b.serve("c.vcow")
	dev := s.dial()
	write(t, dev, w, 70<<10)
	flush(t, dev)
	dev.Close()
	s.stop()
	return b, master, w
}

func TestFlippedBitInOneHeaderCopy(t *testing.T) {
	t.Parallel()
	for n, off := range cowfmt.HeaderOffsets {
		b, master, w := written(t)
		b.poke("c.vcow", off+90)
		copyN := "header copy " + string(rune('0'+n))
		b.run("store", "info", b.path("c.vcow")).exits(0).says("damaged", copyN)
		b.run("store", "dump", b.path("c.vcow")).exits(0).says("bad: " + copyN)
		b.run("store", "verify", b.path("c.vcow")).exits(exitVerify).says(copyN, "1 problem found")
		s := b.serve("c.vcow")
		dev := s.dial()
		holds(t, dev, w, 70<<10)
		holds(t, dev, master[:70<<10], 0)
		s.stop()
		if !bytes.Contains([]byte(s.log.String()), []byte("a header copy is damaged")) {
			t.Errorf("serve says nothing of the damage:\n%s", &s.log)
		}
		b.run("store", "verify", b.path("c.vcow")).exits(0) // mended
	}
}

// refused checks that nothing can be done with a store, and that trying changed nothing.
func refused(b *bench, store string, code int, says ...string) {
	b.t.Helper()
	before := b.read(store)
	path := b.path(store)
	for _, args := range [][]string{
		{"serve", "--socket", b.path("u"), path},
		{"serve", "--socket", b.path("u"), "--read-only", path},
		{"store", "info", path},
		{"store", "dump", path},
		{"store", "create", "--master", "store:" + path, b.path("clone-of-it")},
	} {
		b.run(args...).exits(exitFailed).says(append(says, path)...)
	}
	b.run("store", "verify", b.path(store)).exits(code).says(says...)
	if !bytes.Equal(before, b.read(store)) {
		b.t.Error("a refused store was changed")
	}
	for _, name := range []string{"u", "clone-of-it"} {
		if _, err := os.Lstat(b.path(name)); err == nil {
			b.t.Errorf("%s was left behind", name)
		}
	}
}

func TestFlippedBitInBothHeaderCopies(t *testing.T) {
	t.Parallel()
	b, _, _ := written(t)
	for _, off := range cowfmt.HeaderOffsets {
		b.poke("c.vcow", off+90)
	}
	refused(b, "c.vcow", exitVerify, "corrupt", "header copy 0", "header copy 1")
}

func TestTruncatedStore(t *testing.T) {
	t.Parallel()
	b, _, _ := written(t)
	b.truncate("c.vcow", b.info("c.vcow").Room-512)
	refused(b, "c.vcow", exitVerify, "truncated")
}

func TestUnknownIncompatibleFeature(t *testing.T) {
	t.Parallel()
	b, _, _ := written(t)
	f, err := os.OpenFile(b.path("c.vcow"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// docs/FORMAT.md: length at 12, CRC-32C at 16, the incompatible features at 64.
	for _, off := range cowfmt.HeaderOffsets {
		head := make([]byte, cowfmt.HeaderSize)
		if _, err := f.ReadAt(head, off); err != nil {
			t.Fatal(err)
		}
		binary.LittleEndian.PutUint64(head[64:], 1<<5)
		binary.LittleEndian.PutUint32(head[16:], 0)
		length := binary.LittleEndian.Uint32(head[12:])
		binary.LittleEndian.PutUint32(head[16:], crc32.Checksum(head[:length], crc32.MakeTable(crc32.Castagnoli)))
		if _, err := f.WriteAt(head, off); err != nil {
			t.Fatal(err)
		}
	}
	refused(b, "c.vcow", exitFailed, "unknown incompatible feature (bits 0x20)")
}

func TestFlippedBitInTable(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	master := b.image("m.raw", 40*mib)
	b.clone("c.vcow", "m.raw", "--chunk", "4K", "--size", "200M")
	w := noise(3, 4096)
	s := b.serve("c.vcow")
	dev := s.dial()
	write(t, dev, w, 4096)
	write(t, dev, w, 150*mib) // in another leaf of the table: one has 126 MiB
	flush(t, dev)
	dev.Close()
	s.stop()
	const sector = 2 // of the first leaf
	b.poke("c.vcow", 1<<20+sector*512+17)
	b.run("store", "verify", b.path("c.vcow")).exits(exitVerify).says("sector 2", "1 problem found")
	b.run("store", "dump", b.path("c.vcow")).exits(0).says("bad: ", "sector 2")
	for _, flags := range [][]string{nil, {"--read-only"}, {"--cache-off"}} {
		s = b.serve("c.vcow", flags...)
		dev = s.dial()
		// Nothing is served from a leaf that can't be trusted, neither the store's data nor the master's.
		for _, off := range []int64{0, 4096, sector * 4032 * 4096} {
			if _, err := dev.ReadAt(make([]byte, 4096), off); !errors.Is(err, unix.EIO) {
				t.Errorf("%v: read at %d: %v, want EIO", flags, off, err)
			}
			if flags == nil {
				if _, err := dev.WriteAt(w, off); !errors.Is(err, unix.EIO) {
					t.Errorf("write at %d: %v, want EIO", off, err)
				}
			}
		}
		holds(t, dev, w, 150*mib)
		holds(t, dev, make([]byte, 8192), 151*mib)
		dev.Close()
		s.stop()
	}
	if !bytes.Equal(master, b.read("m.raw")) {
		t.Error("the master changed")
	}
}

func TestWrongMaster(t *testing.T) {
	t.Parallel()
	b, master, w := written(t)
	fails := func(says ...string) {
		t.Helper()
		b.run("serve", "--socket", b.path("u"), b.path("c.vcow")).exits(exitFailed).says(append(says, b.path("m.raw"))...)
		b.run("store", "verify", b.path("c.vcow")).exits(exitVerify).says(says...)
		b.run("store", "verify", "--no-master", b.path("c.vcow")).exits(0)
		b.run("store", "info", b.path("c.vcow")).exits(0)
	}
	put := func(p []byte) {
		t.Helper()
		if err := os.WriteFile(b.path("m.raw"), p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(noise(99, mib))
	fails("wrong master", "the content of")
	changed := bytes.Clone(master)
	changed[mib-1] ^= 1
	put(changed)
	fails("wrong master", "the content of")
	put(master[:mib-4096])
	fails("wrong master", "has 1044480 bytes, the clone was made of 1048576")
	put(append(bytes.Clone(master), make([]byte, 512)...))
	fails("wrong master", "has 1049088 bytes")
	put(master[:mib-100])
	fails("not a multiple of 512")
	if err := os.Remove(b.path("m.raw")); err != nil {
		t.Fatal(err)
	}
	fails("no such file")
	put(master)
	s := b.serve("c.vcow")
	holds(t, s.dial(), w, 70<<10)
	s.stop()
}

// A master that shrinks while it is used: what is gone is EIO, never zeros, and is not taken over.
func TestMasterThatShrinks(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{nil, {"--cache-off"}} {
		b, master, w := written(t)
		s := b.serve("c.vcow", flags...)
		dev := s.dial()
		b.truncate("m.raw", mib/2)
		buf := make([]byte, 4096)
		if _, err := dev.ReadAt(buf, mib-4096); !errors.Is(err, unix.EIO) {
			t.Errorf("read behind the end: %v, want EIO", err)
		}
		if _, err := dev.WriteAt(w[:512], mib-4096); !errors.Is(err, unix.EIO) {
			t.Errorf("write that must copy: %v, want EIO", err)
		}
		holds(t, dev, w, 70<<10)
		holds(t, dev, master[:70<<10], 0)
		write(t, dev, w[:4096], mib-8192) // needs nothing of the master
		if err := os.WriteFile(b.path("m.raw"), master, 0o600); err != nil {
			t.Fatal(err)
		}
		holds(t, dev, master[mib-4096:], mib-4096)
		write(t, dev, w[:512], mib-4096)
		holds(t, dev, append(bytes.Clone(w[:512]), master[mib-3584:]...), mib-4096)
		holds(t, dev, w[:4096], mib-8192)
		flush(t, dev)
		dev.Close()
		s.stop()
	}
}
