package main

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// stack puts a snapshot into the stack of a volume, as an engine does.
func (b *bench) stack(volume, snapshot string, state uint8) {
	b.t.Helper()
	i := b.info(snapshot)
	b.header(volume, func(h *cowfmt.Header) {
		h.Stack = []cowfmt.StackEntry{{
			Kind: cowfmt.StackSnapshot, State: state, UUID: uuid.MustParse(i.UUID), Generation: i.Generation, CutID: uuid.MustParse(i.Snapshot.Cut),
			Cursor: mib / 2, Locator: cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: b.path(snapshot)},
		}}
	})
}

// header changes the header of a store that nobody serves.
func (b *bench) header(name string, change func(h *cowfmt.Header)) {
	b.t.Helper()
	b.opened(name, func(dev blockdev.Device) error {
		s, err := store.Open(dev)
		if err != nil {
			return err
		}
		return s.Update(change)
	})
}

func (b *bench) opened(name string, do func(dev blockdev.Device) error) {
	b.t.Helper()
	dev, err := blockdev.OpenFile(context.Background(), b.path(name), blockdev.FileOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	defer dev.Close()
	if err := do(dev); err != nil {
		b.t.Fatal(err)
	}
}

// save marks a chunk saved, and as the clone's own at the cut.
func (b *bench) save(name string, chunk int) {
	b.t.Helper()
	b.opened(name, func(dev blockdev.Device) error {
		s, err := store.OpenSnapshot(dev)
		if err != nil {
			return err
		}
		l := store.Leaf{Flags: make([]byte, store.LeafFlags)}
		l.Flags[chunk/8] |= 1 << (chunk % 8)
		if err := s.WriteLeaves([]store.Leaf{l}); err != nil || !s.HasFrozen() {
			return err
		}
		return s.WriteFrozen([]store.Leaf{l})
	})
}

// What is told of snapshots, of both kinds of volumes.
func TestSnapshotStore(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.image("m.raw", mib)
	b.image("disk", mib)
	b.clone("clone.vcow", "m.raw", "--chunk", "8K")
	b.run("store", "create", "--raw", b.path("disk"), b.path("linear.state")).exits(0)
	for _, c := range []struct{ volume, snapshot, chunk, frozen string }{
		{"clone.vcow", "c.snap", "8 K", "frozen table, runs"},
		{"linear.state", "l.snap", "4 K", ""},
	} {
		name := b.info(c.volume).Name
		var size storeSize
		b.run("--json", "store", "size", "--snapshot-of", c.volume).exits(0).json(&size)
		s := b.serve(c.volume) // a volume is in use when its snapshot is made
		b.run("store", "create", "--snapshot-of", c.volume, c.snapshot).exits(0).says("volume "+name, "chunks of "+c.chunk+"iB, a snapshot")
		s.stop()
		if st, err := os.Stat(b.path(c.snapshot)); err != nil || st.Size() != size.Room {
			t.Errorf("%s: %v, %v, said to need %d", c.snapshot, st, err, size.Room)
		}
		b.run("store", "create", "--snapshot-of", c.volume, c.snapshot).exits(exitFailed).says("exists")
		b.run("store", "verify", c.snapshot).exits(0).says("0 of")
		b.save(c.snapshot, 3)
		i := b.info(c.snapshot)
		if i.Role != "snapshot" || i.Name != name || i.Snapshot.VolumeUUID != b.info(c.volume).UUID || i.Snapshot.Saved != 1 || i.Owner != nil || i.Origin != "" {
			t.Errorf("%+v, %+v", i, i.Snapshot)
		}
		b.run("store", "info", c.snapshot).exits(0).says("snapshot of", b.path(c.volume), i.Snapshot.Cut, "1 of", "saved")
		b.run("store", "dump", c.snapshot).exits(0).says("3 +1", c.frozen)
		b.run("store", "verify", c.snapshot).exits(0).says("1 of")
		b.run("serve", "--socket", b.path("s"), c.snapshot).exits(exitFailed).says("snapshot")

		b.stack(c.volume, c.snapshot, cowfmt.StackActive)
		b.run("store", "info", c.volume).exits(0).says(i.UUID, "active", "break-snapshot", "released up to 512 KiB")
		b.run("store", "verify", c.volume).exits(0)
		b.run("store", "verify", c.snapshot).exits(0)
		b.run("store", "delete", "--yes", c.volume).exits(exitLocked).says("1 snapshots")
		b.run("store", "delete", "--yes", c.snapshot).exits(exitLocked).says("active", "--force")
		b.must("mv", c.volume, "moved")
		b.run("store", "delete", "--yes", c.snapshot).exits(exitFailed).says("can't be known", "--volume")
		b.run("store", "delete", "--yes", "--volume", "m.raw", c.snapshot).exits(exitFailed).says("can't be known")
		b.run("store", "delete", "--yes", "--volume", "moved", c.snapshot).exits(exitLocked).says("active")
		b.run("store", "verify", c.snapshot).exits(exitVerify).says("no such file")
		b.run("store", "verify", "--no-master", c.snapshot).exits(0)
		b.must("mv", "moved", c.volume)
	}
	var found []scanned
	b.run("--json", "store", "scan", "c.snap").exits(0).json(&found)
	if len(found) != 1 || found[0].Role != "snapshot" || found[0].Volume != b.info("clone.vcow").UUID || found[0].Cut == "" || found[0].Master == "" {
		t.Errorf("%+v", found)
	}
	b.stack("clone.vcow", "c.snap", cowfmt.StackBroken)
	b.run("store", "delete", "--yes", "c.snap").exits(0).says("snapshot of volume clone deleted")
	b.run("store", "verify", "clone.vcow").exits(0)
	b.run("store", "delete", "--yes", "--force", "l.snap").exits(0)
	b.run("store", "verify", "linear.state").exits(exitVerify).says("l.snap: no such file")
	if b.info("clone.vcow").Snapshots[0].State != "broken" {
		t.Error("the stack was changed")
	}
}

// A snapshot that its volume does not list, or that is another one's, is told.
func TestSnapshotOfAnother(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run("store", "create", "--size", "1M", b.path("a.vcow")).exits(0)
	b.run("store", "create", "--size", "1M", b.path("b.vcow")).exits(0)
	b.run("store", "create", "--snapshot-of", "a.vcow", "a.snap").exits(0)
	b.stack("b.vcow", "a.snap", cowfmt.StackActive)
	b.run("store", "verify", "b.vcow").exits(exitVerify).says("is not the snapshot that the volume lists")
	b.run("store", "delete", "--yes", "a.snap").exits(0)

	b.run("store", "create", "--snapshot-of", "a.vcow", "a.snap").exits(0)
	b.poke("a.snap", b.info("a.snap").DataOffset-1<<20)
	b.run("store", "verify", "a.snap").exits(exitVerify).says("frozen table", "corrupt")
	b.run("store", "dump", "a.snap").exits(0).says("bad: ")
	b.poke("a.snap", b.info("a.snap").DataOffset-3<<20)
	b.run("store", "verify", "a.snap").exits(exitVerify).says("2 problems")
}

func TestSnapshotRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.image("disk", mib)
	b.run("store", "create", "--size", "1M", "--chunk", "8K", b.path("a.vcow")).exits(0)
	b.run("store", "create", "--raw", b.path("disk"), b.path("l.state")).exits(0)
	b.run("store", "create", "--snapshot-of", "a.vcow", "a.snap").exits(0)
	b.run("store", "create", "--snapshot-of", "l.state", "--chunk", "64K", "l.snap").exits(0)
	for _, c := range []struct {
		exit int
		says string
		args []string
	}{
		{exitUsage, "the clone's, 8192", []string{"--snapshot-of", "a.vcow", "--chunk", "4K", "x"}},
		{exitUsage, "power of two", []string{"--snapshot-of", "l.state", "--chunk", "5K", "x"}},
		{exitUsage, "leave out", []string{"--snapshot-of", "a.vcow", "--size", "1M", "x"}},
		{exitUsage, "leave out", []string{"--snapshot-of", "a.vcow", "--name", "n", "x"}},
		{exitUsage, "--uuid", []string{"--snapshot-of", "a.vcow", "--uuid", "5", "x"}},
		{exitUsage, "has no snapshots", []string{"--snapshot-of", "a.snap", "x"}},
		{exitUsage, "is the store of volume a", []string{"--snapshot-of", "a.vcow", "--onto", "--force", "a.vcow"}},
		{exitUsage, "is the raw disk of volume l", []string{"--snapshot-of", "l.state", "--onto", "--force", "disk"}},
		{exitFailed, "no such file", []string{"--snapshot-of", "nowhere", "x"}},
		{exitFailed, "not a virt-cow store", []string{"--snapshot-of", "disk", "x"}},
	} {
		b.run(append([]string{"store", "create"}, c.args...)...).exits(c.exit).says(c.says)
		if _, err := os.Lstat(b.path("x")); err == nil {
			t.Fatalf("%q left something behind", c.args)
		}
	}
	b.run("store", "size", "--snapshot-of", "a.vcow", "--size", "1M").exits(exitUsage)
	b.run("store", "create", "--master", "store:"+b.path("a.snap"), b.path("x")).exits(exitFailed).says("snapshot")
}

// A LUN takes a snapshot's store, too, and another one in its place after it was deleted.
func TestSnapshotOnLUN(t *testing.T) {
	t.Parallel()
	need(t, "root")
	b := newBench(t)
	b.run("store", "create", "--size", "1M", b.path("a.vcow")).exits(0)
	b.truncate("lun", 8*mib)
	lun := b.loop("lun")
	for range 2 {
		b.run("store", "create", "--snapshot-of", "a.vcow", lun).exits(0)
		b.run("store", "create", "--snapshot-of", "a.vcow", lun).exits(exitFailed).says("of volume a", "--force")
		b.run("store", "verify", lun).exits(0)
		b.run("store", "delete", "--name", "a", lun).exits(0)
	}
	b.run("store", "create", "--snapshot-of", "a.vcow", lun).exits(0)
	b.must("ln", "-s", lun, "snap")
	b.stack("a.vcow", "snap", cowfmt.StackActive)
	b.run("store", "create", "--snapshot-of", "a.vcow", "--force", lun).exits(exitLocked).says("active")
	b.run("store", "verify", lun).exits(0)
	b.stack("a.vcow", "snap", cowfmt.StackBroken)
	b.run("store", "create", "--snapshot-of", "a.vcow", "--force", lun).exits(0)
	b.truncate("small", 4*mib)
	b.run("store", "create", "--snapshot-of", "a.vcow", b.loop("small")).exits(exitFailed).says("needs")
}

// cutNow makes a snapshot of a volume that is served, and returns its UUID.
func (s *server) cutNow(volume, snapshot, onError string) string {
	s.b.t.Helper()
	s.b.run("store", "create", "--snapshot-of", volume, snapshot).exits(0)
	i := s.b.info(snapshot)
	e, ctx := s.engine(), s.b.t.Context()
	if _, err := e.AddSnapshot(ctx, api.SnapshotAddRequest{UUID: i.UUID, Cut: i.Snapshot.Cut, Store: s.b.path(snapshot), OnError: onError}); err != nil {
		s.b.t.Fatal(err)
	}
	if _, err := e.Cut(ctx, api.CutRequest{Cut: i.Snapshot.Cut, DeadlineMillis: 60_000}); err != nil {
		s.b.t.Fatal(err)
	}
	if _, err := e.EndCut(ctx, api.CutEndRequest{Cut: i.Snapshot.Cut, Keep: true}); err != nil {
		s.b.t.Fatal(err)
	}
	return i.UUID
}

// A volume whose snapshot's store is lost, and that is not to be written without it, is opened again once the snapshot is
// given up; what its killed engine had acknowledged is there.
func TestSnapshotLost(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run("store", "create", "--size", "1M", b.path("a.vcow")).exits(0)
	s := b.serve("a.vcow")
	id := s.cutNow("a.vcow", "a.snap", api.BreakGuestWrite)
	if _, err := s.dial().WriteAt(bytes.Repeat([]byte{7}, 4096), 8192); err != nil {
		t.Fatal(err)
	}
	b.run("store", "break-snapshot", "--yes", "a.vcow", id).exits(exitLocked)
	s.kill()
	b.must("rm", "a.snap")
	b.run("serve", "--socket", b.path("s"), "a.vcow").exits(exitFailed).says("virt-cow store break-snapshot " + b.path("a.vcow") + " " + id)
	b.run("store", "break-snapshot", "a.vcow", id).exits(exitUsage).says("--yes")
	b.run("store", "break-snapshot", "--yes", "a.vcow", "x").exits(exitUsage).says("store info")
	b.run("store", "break-snapshot", "--yes", "a.vcow", uuid.NewString()).exits(exitFailed).says("not in the stack")
	var broken struct{ Volume, Snapshot string }
	if b.run("--json", "store", "break-snapshot", "--yes", "a.vcow", id).exits(0).json(&broken); broken.Volume != "a" || broken.Snapshot != id {
		t.Errorf("%+v", broken)
	}
	b.run("store", "break-snapshot", "--yes", "a.vcow", id).exits(0).says("can be opened without")
	s = b.serve("a.vcow")
	p := make([]byte, 4096)
	if _, err := s.dial().ReadAt(p, 8192); err != nil || p[0] != 7 {
		t.Errorf("reads %d: %v", p[0], err)
	}
	s.stop()
	if got := b.info("a.vcow").Snapshots; len(got) != 1 || got[0].State != api.SnapshotBroken {
		t.Errorf("%+v", got)
	}
}
