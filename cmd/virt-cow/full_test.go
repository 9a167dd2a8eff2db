package main

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The file system under the store is full: the request that needs room fails, nothing acknowledged is
// lost, the volume stays usable, and with room again it goes on. Nobody opens anything anew.
func TestFullFileSystem(t *testing.T) {
	t.Parallel()
	need(t, "root", "mkfs.ext4", "mount", "umount")
	for _, flags := range [][]string{nil, {"--cache-off"}} {
		b := newBench(t)
		b.truncate("fs", 24*mib)
		b.must("mkfs.ext4", "-q", "-m0", "-O", "^has_journal", b.path("fs"))
		mnt := b.path("mnt")
		if err := os.Mkdir(mnt, 0o700); err != nil {
			t.Fatal(err)
		}
		b.must("mount", b.loop("fs"), mnt)
		t.Cleanup(func() { b.must("umount", mnt) })
		if err := os.WriteFile(mnt+"/ballast", make([]byte, 8*mib), 0o600); err != nil {
			t.Fatal(err)
		}
		master := b.image("m.raw", 32*mib)
		b.clone(mnt+"/c.vcow", "m.raw", "--chunk", "64K")
		s := b.serve(mnt+"/c.vcow", flags...)
		dev := s.dial()
		// Acknowledged writes, by offset, until there is no more room.
		const piece = 128 << 10
		model := bytes.Clone(master)
		var failed int64 = -1
		for off := int64(0); off < 32*mib; off += piece {
			w := noise(uint64(off)+1, piece)
			_, err := dev.WriteAt(w, off)
			if err == nil {
				copy(model[off:], w)
				continue
			}
			if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) {
				t.Fatalf("write at %d: %v, want ENOSPC or EIO", off, err)
			}
			failed = off
			break
		}
		if failed < mib {
			t.Fatalf("the file system was never full, or at once: %d", failed)
		}
		check := func(when string) {
			t.Helper()
			got := make([]byte, len(model))
			for off := 0; off < len(got); off += mib {
				if _, err := dev.ReadAt(got[off:off+mib], int64(off)); err != nil {
					t.Fatalf("%s: %v", when, err)
				}
			}
			// What failed may read as old or as new, per sector.
			lo, hi := failed, failed+piece
			if !bytes.Equal(got[:lo], model[:lo]) || !bytes.Equal(got[hi:], model[hi:]) {
				t.Fatalf("%s: acknowledged data differs", when)
			}
		}
		check("full")
		write(t, dev, model[:piece], 0) // over what is there
		flush(t, dev)
		check("full, flushed")
		if err := os.Remove(mnt + "/ballast"); err != nil {
			t.Fatal(err)
		}
		for off := failed; off < failed+4*mib; off += piece {
			w := noise(uint64(off)+2, piece)
			write(t, dev, w, off)
			copy(model[off:], w)
		}
		flush(t, dev)
		check("with room again")
		if st := s.status(); st.Error != "" || st.IO.Errors == 0 {
			t.Errorf("status: error %q, %d errors", st.Error, st.IO.Errors)
		}
		dev.Close()
		s.stop()
		b.run("store", "verify", mnt+"/c.vcow").exits(0)
		s = b.serve(mnt + "/c.vcow")
		dev = s.dial()
		check("opened again")
		dev.Close()
		s.stop()
	}
}

// Hydration into a full file system fails and is seen to, and goes on when asked again.
func TestHydrationIntoAFullFileSystem(t *testing.T) {
	t.Parallel()
	need(t, "root", "mkfs.ext4", "mount", "umount")
	b := newBench(t)
	b.truncate("fs", 16*mib)
	b.must("mkfs.ext4", "-q", "-m0", "-O", "^has_journal", b.path("fs"))
	mnt := b.path("mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	b.must("mount", b.loop("fs"), mnt)
	t.Cleanup(func() { b.must("umount", mnt) })
	if err := os.WriteFile(mnt+"/ballast", make([]byte, 8*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	master := b.image("m.raw", 12*mib)
	b.clone(mnt+"/c.vcow", "m.raw")
	s := b.serve(mnt+"/c.vcow", "--hydrate")
	eventually(t, "hydration fails", func() bool { return s.status().Hydration.State == "failed" })
	if st := s.status(); st.Hydration.Error == "" || st.Master == "" {
		t.Errorf("%+v", st.Hydration)
	}
	dev := s.dial()
	holds(t, dev, master, 0)
	if err := os.Remove(mnt + "/ballast"); err != nil {
		t.Fatal(err)
	}
	yes := true
	hydration(s, apiRun(&yes))
	s.hydrated()
	holds(t, dev, master, 0)
	dev.Close()
	s.stop()
}
