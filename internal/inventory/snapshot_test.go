package inventory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/catalogue"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

const (
	snapID = "aaaaaaaa-1111-4111-8111-111111111111"
	cutID  = "cccccccc-1111-4111-8111-111111111111"
)

func (r *rig) snapshot(volume string, change ...func(*SnapshotRequest)) Snapshot {
	r.t.Helper()
	q := SnapshotRequest{Volume: volume, UUID: uuid.NewString(), Cut: cutID, Job: "nightly-7"}
	for _, c := range change {
		c(&q)
	}
	s, err := r.MakeSnapshot(ctx, q)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// listed puts a snapshot into the stack of its volume, which nobody serves, as an engine does.
func (r *rig) listed(s Snapshot, state uint8) {
	r.t.Helper()
	r.stack(s.Volume, []cowfmt.StackEntry{{
		Kind: cowfmt.StackSnapshot, State: state, UUID: uuid.MustParse(s.UUID), CutID: uuid.MustParse(s.Cut), Generation: 1,
		Locator: cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: s.Store},
	}})
}

func (r *rig) stack(volume string, stack []cowfmt.StackEntry) {
	r.t.Helper()
	dev, err := blockdev.OpenFile(ctx, ready(r.t, r, volume).Store, blockdev.FileOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	defer dev.Close()
	st, err := store.Open(dev)
	if err == nil {
		err = st.Update(func(h *cowfmt.Header) { h.Stack = stack })
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// Made, shown, kept over a restart, and deleted only once its volume does not list it any more.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	v := r.create(api.CreateRequest{Name: "v"})
	s := r.snapshot("v")
	if s.Volume != "v" || s.VolumeUUID != v.UUID || s.Cut != cutID || s.Job != "nightly-7" || s.State != catalogue.Ready || s.Size != mib ||
		s.Store != r.path("stores", "v-snap-"+s.UUID[:8]+".vcow") || s.Created == 0 {
		t.Errorf("%+v", s)
	}
	r.reopen()
	if all := r.Snapshots(); len(all) != 1 || all[0] != s {
		t.Errorf("%+v", all)
	}
	if r.Len() != 1 || len(r.List()) != 1 {
		t.Error("a snapshot is among the volumes")
	}
	if _, ok := r.ByStore(s.Store); ok {
		t.Error("a snapshot's store is taken for a volume's")
	}
	_, err := r.Delete(ctx, "v", api.DeleteRequest{})
	refused(t, err, ErrInUse, s.UUID, "nightly-7")
	for _, state := range []uint8{cowfmt.StackPending, cowfmt.StackActive} {
		r.listed(s, state)
		refused(t, r.DeleteSnapshot(ctx, s.UUID), ErrInUse, s.UUID, "in the volume's stack")
		wants(t, "stores", tree(t, r.path("stores")), []string{filepath.Base(s.Store), "v.vcow"})
		if all := r.Snapshots(); len(all) != 1 || all[0] != s {
			t.Errorf("%+v", all)
		}
	}
	if h, err := r.Header(ctx, v.Store); err != nil || len(h.Stack) != 1 || h.Stack[0].UUID != s.UUID || h.Stack[0].State != api.SnapshotActive ||
		h.Stack[0].Store != s.Store || h.Stack[0].OnError != api.BreakSnapshot {
		t.Errorf("%+v, %v", h, err)
	}
	r.listed(s, cowfmt.StackBroken)
	if err := r.DeleteSnapshot(ctx, s.UUID); err != nil {
		t.Fatal(err)
	}
	refused(t, r.DeleteSnapshot(ctx, s.UUID), ErrNotFound)
	r.stack("v", nil)
	r.delete("v")
	wants(t, "left", append(tree(t, r.path("stores")), tree(t, r.path("state/snapshots"))...), nil)
}

// A volume that is served gets its snapshot's store too.
func TestSnapshotWhileServed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.create(api.CreateRequest{Name: "v"})
	s := serve(t, r, "v")
	defer s.stop()
	if err := r.DeleteSnapshot(ctx, r.snapshot("v").UUID); err != nil {
		t.Error(err)
	}
}

func TestSnapshotPlaces(t *testing.T) {
	t.Parallel()
	pools := &folderPools{}
	r := newRig(t, pools.use, func(c *Config) {
		c.Provider = func(string) (Provider, error) { return &folderProvider{dir: filepath.Join(c.RunDir, "provided")}, nil }
	})
	pools.dir = r.path("pool")
	r.create(api.CreateRequest{Name: "v"})
	if err := os.Mkdir(r.path("snaps"), 0o700); err != nil {
		t.Fatal(err)
	}
	stable, _ := r.loop("lun", 8*mib)
	for what, c := range map[string]struct {
		change func(q *SnapshotRequest)
		where  string
	}{
		"folder":   {func(q *SnapshotRequest) { q.Folder = r.path("snaps") }, r.path("snaps") + "/v-snap-"},
		"path":     {func(q *SnapshotRequest) { q.Store = r.path("snaps/x") }, r.path("snaps/x")},
		"pool":     {func(q *SnapshotRequest) { q.Pool = "default" }, r.path("pool") + "/v-snap-"},
		"provider": {func(q *SnapshotRequest) { q.Provider = "p" }, r.path("run/provided")},
		"device":   {func(q *SnapshotRequest) { q.Store = stable }, stable},
	} {
		s := r.snapshot("v", c.change)
		if !strings.HasPrefix(s.Store, c.where) {
			t.Errorf("%s: made at %s", what, s.Store)
		}
		if devices := r.Devices(ready(t, r, "v")); what == "device" && (len(devices) != 1 || devices[0] != stable) {
			t.Errorf("the engine would open %q", devices)
		}
		_, err := r.Create(ctx, api.CreateRequest{Name: "w", Size: mib, Store: s.Store, Force: true})
		refused(t, err, ErrExists)
		if err := r.DeleteSnapshot(ctx, s.UUID); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	left := append(append(tree(t, r.path("snaps")), tree(t, pools.dir)...), tree(t, r.path("state/snapshots"))...)
	wants(t, "left", left, nil)
}

func TestSnapshotRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	v := r.create(api.CreateRequest{Name: "v", ChunkSize: 8192})
	s := r.snapshot("v")
	for what, c := range map[string]struct {
		change func(q *SnapshotRequest)
		kind   error
	}{
		"no volume":     {func(q *SnapshotRequest) { q.Volume = "nobody" }, ErrNotFound},
		"a path":        {func(q *SnapshotRequest) { q.Volume = "../v" }, ErrInvalid},
		"no UUID":       {func(q *SnapshotRequest) { q.UUID = "" }, ErrInvalid},
		"odd UUID":      {func(q *SnapshotRequest) { q.UUID = strings.ToUpper(snapID) }, ErrInvalid},
		"no cut":        {func(q *SnapshotRequest) { q.Cut = "../x" }, ErrInvalid},
		"two places":    {func(q *SnapshotRequest) { q.Folder, q.Pool = "/x", "default" }, ErrInvalid},
		"no pool":       {func(q *SnapshotRequest) { q.LUN = "1" }, ErrInvalid},
		"chunk":         {func(q *SnapshotRequest) { q.ChunkSize = 4096 }, ErrInvalid},
		"negative":      {func(q *SnapshotRequest) { q.ChunkSize = -1 }, ErrInvalid},
		"relative":      {func(q *SnapshotRequest) { q.Store = "x" }, ErrInvalid},
		"taken":         {func(q *SnapshotRequest) { q.Store = v.Store }, ErrExists},
		"there already": {func(q *SnapshotRequest) { q.UUID = s.UUID }, ErrExists},
		"a volume's":    {func(q *SnapshotRequest) { q.UUID = v.UUID }, ErrExists},
	} {
		q := SnapshotRequest{Volume: "v", UUID: snapID, Cut: cutID}
		c.change(&q)
		if _, err := r.MakeSnapshot(ctx, q); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", what, err)
		}
	}
	wants(t, "left", tree(t, r.path("stores")), []string{filepath.Base(s.Store), "v.vcow"})
	// An error after the intent was recorded: the folder is not there.
	_, err := r.MakeSnapshot(ctx, SnapshotRequest{Volume: "v", UUID: snapID, Cut: cutID, Folder: r.path("nowhere")})
	refused(t, err, nil, "no such file")
	if all := r.Snapshots(); len(all) != 1 {
		t.Errorf("%+v", all)
	}
	_, err = r.Adopt(ctx, api.AdoptRequest{Store: s.Store})
	refused(t, err, ErrInvalid, "of a snapshot")
	_, err = r.Create(ctx, api.CreateRequest{Name: "c", Master: "store:" + s.Store})
	refused(t, err, nil, "snapshot")
}

// The master of a clone stays as long as a snapshot of the clone reads it, also once the clone is cut loose.
func TestSnapshotPinsMaster(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.create(api.CreateRequest{Name: "m"})
	r.create(api.CreateRequest{Name: "c", From: "m"})
	s := r.snapshot("c")
	hydrate(t, r, "c")
	if err := r.CutLoose("c"); err != nil {
		t.Fatal(err)
	}
	wants(t, "clones", r.Clones("m"), []string{"c"})
	_, err := r.Delete(ctx, "m", api.DeleteRequest{})
	refused(t, err, ErrInUse, "volume c", "snapshots")
	loose := r.snapshot("c") // needs no master
	if err := r.DeleteSnapshot(ctx, s.UUID); err != nil {
		t.Fatal(err)
	}
	wants(t, "clones", r.Clones("m"), nil)
	r.delete("m")
	if err := r.DeleteSnapshot(ctx, loose.UUID); err != nil {
		t.Fatal(err)
	}
}

// A scan finds snapshots, moved ones and lost ones too, and takes none for a volume.
func TestScanSnapshots(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	v := r.create(api.CreateRequest{Name: "v"})
	s := r.snapshot("v")
	name := "snapshot " + s.UUID + " of volume v"
	r.forget()
	report := r.scan()
	wants(t, "found", report.Found, []string{name, "v"})
	s.Job = "" // nobody knows any more
	if all := r.Snapshots(); len(all) != 1 || all[0] != s {
		t.Errorf("%+v", all)
	}
	if l := r.List(); len(l) != 1 || l[0] != v {
		t.Errorf("%+v", l)
	}
	if report := r.scan(); len(report.Found)+len(report.Moved)+len(report.Missing)+len(report.Refused) > 0 {
		t.Errorf("nothing has changed: %+v", report)
	}
	r.move(s.Store, r.path("stores/elsewhere"))
	wants(t, "moved", r.scan().Moved, []string{name})
	if all := r.Snapshots(); len(all) != 1 || all[0].Store != r.path("stores/elsewhere") {
		t.Errorf("%+v", all)
	}
	r.copy(r.path("stores/elsewhere"), r.path("stores/twin"))
	if report := r.scan(); len(report.Refused) != 1 || !strings.Contains(report.Refused[0], "twin") || len(report.Moved) > 0 {
		t.Errorf("%+v", report)
	}
	if err := errors.Join(os.Remove(r.path("stores/elsewhere")), os.Remove(r.path("stores/twin"))); err != nil {
		t.Fatal(err)
	}
	wants(t, "missing", r.scan().Missing, []string{name})
	_, err := r.Delete(ctx, "v", api.DeleteRequest{})
	refused(t, err, ErrInUse, s.UUID)
	if err := r.DeleteSnapshot(ctx, s.UUID); err != nil {
		t.Fatal(err)
	}
	r.delete("v")
}

// A snapshot whose store is gone, or another one's place by now, is forgotten; one whose volume can't be asked is not.
func TestDeleteLostSnapshot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	v := r.create(api.CreateRequest{Name: "v"})
	gone, kept := r.snapshot("v"), r.snapshot("v")
	if err := os.Remove(gone.Store); err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteSnapshot(ctx, gone.UUID); err != nil {
		t.Error(err)
	}
	r.move(v.Store, r.path("away"))
	refused(t, r.DeleteSnapshot(ctx, kept.UUID), nil, "can't be known")
	r.move(r.path("away"), v.Store)
	r.reopen() // Recover goes on with it
	if all := r.Snapshots(); len(all) != 0 {
		t.Errorf("%+v", all)
	}
	wants(t, "left", tree(t, r.path("stores")), []string{"v.vcow"})
}

// Killed between any two steps: a snapshot that was being made is gone with all its traces, one that was being deleted
// is whole or gone, and its volume is as it was.
func TestSnapshotKilledAtEachStep(t *testing.T) {
	for how, pool := range map[string]string{"before": "default", "after": "", "meanwhile": ""} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			killSnapshot(t, how, pool)
		})
	}
}

func killSnapshot(t *testing.T, how, pool string) {
	pools := &folderPools{}
	r := newRig(t, pools.use)
	pools.dir = r.path("pool")
	if err := errors.Join(os.Mkdir(pools.dir, 0o700), os.Chmod(r.file("wrapper", wrapper), 0o700)); err != nil {
		t.Fatal(err)
	}
	v := r.create(api.CreateRequest{Name: "v"})
	check := func(what string, snapshots int) {
		t.Helper()
		r.open()
		all := r.Snapshots()
		files := append(tree(t, r.path("stores")), tree(t, pools.dir)...)
		if len(all) != snapshots || len(files) != 1+snapshots {
			t.Errorf("%s: %+v, files %q", what, all, files)
		}
		for _, s := range all {
			if s.State != catalogue.Ready || s.Error != "" {
				t.Errorf("%s: %+v", what, s)
			}
			r.run("store", "verify", s.Store)
		}
		if got, err := r.Show(ctx, "v"); err != nil || got != v {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	make, unmake := "snapshot "+pool, "unsnapshot "+pool
	whole := func(task string) (steps int) {
		t.Helper()
		if r.killed(task, how, 1000) {
			t.Fatal("killed?")
		}
		b, err := os.ReadFile(r.path("count"))
		if err == nil {
			steps, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		if err != nil {
			t.Fatal(err)
		}
		return steps
	}
	steps, kills := whole(make), 0
	check("made", 1)
	unsteps := whole(unmake)
	for step := 1; step <= steps; step++ {
		if !r.killed(make, how, step) {
			whole(unmake)
			continue
		}
		kills++
		check(fmt.Sprintf("making, killed %s step %d", how, step), 0)
	}
	for step := 1; step <= unsteps; step++ {
		whole(make)
		if r.killed(unmake, how, step) {
			kills++
		}
		r.open()
		left := len(r.Snapshots())
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if check(fmt.Sprintf("deleting, killed %s step %d", how, step), left); left > 0 {
			whole(unmake)
		}
	}
	check("deleted", 0)
	if kills < 6 {
		t.Errorf("only %d kills", kills)
	}
	r.open()
}

// childSnapshot is what the child does for the test above.
func childSnapshot(inv *Inventory, task, pool string) error {
	if task == "snapshot" {
		_, err := inv.MakeSnapshot(context.Background(), SnapshotRequest{Volume: "v", UUID: snapID, Cut: cutID, Pool: pool})
		return err
	}
	return inv.DeleteSnapshot(context.Background(), snapID)
}
