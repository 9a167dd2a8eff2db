package catalogue

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func snapshotEntry() Entry {
	e := entry(7)
	e.Name, e.Role, e.Volume, e.VolumeUUID = e.UUID, "snapshot", "web1", entry(1).UUID
	e.Cut, e.Job = "3f2a9c1e-0000-4000-8000-00000000000c", "nightly"
	return e
}

// Snapshots have records of their own, and come back; a record in the other folder is refused.
func TestSnapshots(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	s := snapshotEntry()
	if err := errors.Join(c.Snapshots().Add(s), c.Add(entry(1))); err != nil {
		t.Fatal(err)
	}
	if err := c.Add(s); err == nil || !strings.Contains(err.Error(), "snapshot "+s.UUID+" of volume web1") {
		t.Errorf("a snapshot among the volumes: %v", err)
	}
	if err := c.Snapshots().Add(entry(2)); err == nil {
		t.Error("a volume among the snapshots")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"volumes/v00001.json": "snapshots/v00001.json", "snapshots/" + s.Name + ".json": "volumes/" + s.Name + ".json"} {
		b, err := os.ReadFile(filepath.Join(dir, from))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	c = open(t, dir)
	if got, err := c.Snapshots().ByName(s.Name); err != nil || got != s {
		t.Errorf("%+v, %v", got, err)
	}
	if len(c.All()) != 1 || len(c.Snapshots().All()) != 1 || len(c.Damaged()) != 1 || len(c.Snapshots().Damaged()) != 1 {
		t.Errorf("%v %v %v %v", c.All(), c.Snapshots().All(), c.Damaged(), c.Snapshots().Damaged())
	}
}

func TestSnapshotRecordRefused(t *testing.T) {
	for name, change := range map[string]func(e *Entry){
		"name":        func(e *Entry) { e.Name = "web1" },
		"volume":      func(e *Entry) { e.Volume = "../web1" },
		"no volume":   func(e *Entry) { e.Volume = "" },
		"volume UUID": func(e *Entry) { e.VolumeUUID = "" },
		"cut":         func(e *Entry) { e.Cut = "x" },
		"role":        func(e *Entry) { e.Role = "clone" },
		"origin":      func(e *Entry) { e.Origin = "/disk" },
	} {
		e := snapshotEntry()
		change(&e)
		if _, err := encode(e); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	e := snapshotEntry()
	e.State, e.Role, e.Size, e.ChunkSize, e.Store = Creating, "", 0, 0, ""
	if _, err := encode(e); err != nil {
		t.Error(err)
	}
}
