package backup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// makeStore makes a clone's store in a file.
func makeStore(t *testing.T, path string) string {
	t.Helper()
	id := uuid.New()
	h := &cowfmt.Header{UUID: id, Name: "v", Role: cowfmt.RoleClone, Size: 1 << 20, ChunkSize: 4096, Cache: cowfmt.CacheOn, Generation: 1, Epoch: 1}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	layout, err := cowfmt.NewLayout(h.Role, h.Size, h.ChunkSize)
	if err != nil {
		t.Fatal(err)
	}
	h.Layout = layout
	if err := os.Truncate(path, h.DataEnd()); err != nil {
		t.Fatal(err)
	}
	f, err := blockdev.OpenFile(t.Context(), path, blockdev.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := store.Create(f, h); err != nil {
		t.Fatal(err)
	}
	return id.String()
}

// scanFolders is a Scan that looks at files by itself.
func scanFolders(_ context.Context, paths []string) (all []Found, err error) {
	for _, folder := range paths {
		files, _ := filepath.Glob(filepath.Join(folder, "*"))
		for _, path := range files {
			f, err := blockdev.OpenFile(context.Background(), path, blockdev.FileOptions{ReadOnly: true})
			if err != nil {
				continue
			}
			if choice, err := store.Peek(f); err == nil {
				all = append(all, Found{UUID: choice.Header.UUID.String(), Paths: []string{path}})
			}
			f.Close()
		}
	}
	return all, nil
}

func TestFindStore(t *testing.T) {
	t.Parallel()
	in, out := t.TempDir(), t.TempDir()
	f := newFinder(Places{Folders: []string{in}, Scan: scanFolders})
	a, b := makeStore(t, filepath.Join(in, "a")), makeStore(t, filepath.Join(out, "b"))
	found := func(p api.Place) (string, error) {
		dev, err := f.store(t.Context(), p)
		if err != nil {
			return "", err
		}
		defer dev.Close()
		return dev.Info().Name, nil
	}
	for _, address := range []string{filepath.Join(in, "a"), "/dev/mapper/elsewhere", filepath.Join(out, "b"), ""} {
		if path, err := found(api.Place{UUID: a, Address: address}); err != nil || path != filepath.Join(in, "a") {
			t.Errorf("%q: %s %v", address, path, err)
		}
	}
	// It has moved.
	if err := os.Rename(filepath.Join(in, "a"), filepath.Join(in, "c")); err != nil {
		t.Fatal(err)
	}
	if path, err := found(api.Place{UUID: a}); err != nil || path != filepath.Join(in, "c") {
		t.Errorf("%s %v", path, err)
	}
	// What is elsewhere is not opened, though the other host says so.
	for _, address := range []string{filepath.Join(out, "b"), in + "/../" + filepath.Base(out) + "/b"} {
		if path, err := found(api.Place{UUID: b, Address: address}); !errors.Is(err, ErrNotSeen) {
			t.Errorf("%s %v", path, err)
		}
	}
	// A second one with the same UUID.
	copied, err := os.ReadFile(filepath.Join(in, "c"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(in, "false"), copied, 0o600); err != nil {
		t.Fatal(err)
	}
	f.known = map[string]string{}
	for range 2 { // however often it is tried
		if path, err := found(api.Place{UUID: a, Address: "/dev/mapper/x"}); err == nil || !strings.Contains(err.Error(), "more than once") {
			t.Errorf("%s %v", path, err)
		}
	}
	if path, err := found(api.Place{UUID: a, Address: filepath.Join(in, "c")}); err != nil || path != filepath.Join(in, "c") {
		t.Errorf("%s %v", path, err)
	}
	// The place that was told is another LUN here.
	f.wwid = func(path string) string { return "naa." + filepath.Base(path) }
	right := api.Place{UUID: a, Address: filepath.Join(in, "c"), WWID: "naa.c"}
	if path, err := found(right); err != nil || path != right.Address {
		t.Errorf("%s %v", path, err)
	}
	if path, err := found(api.Place{UUID: a, Address: filepath.Join(in, "false"), WWID: "naa.c"}); err == nil || !strings.Contains(err.Error(), "more than once") {
		t.Errorf("%s %v", path, err)
	}
	if err := os.Remove(filepath.Join(in, "false")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it may have another WWID there, as by a single path
		if path, err := found(api.Place{UUID: a, Address: filepath.Join(in, "c"), WWID: "mpath-c"}); err != nil || path != filepath.Join(in, "c") {
			t.Errorf("%s %v", path, err)
		}
	}
}

func TestFindRaw(t *testing.T) {
	t.Parallel()
	in := t.TempDir()
	at := func(name string) string { return filepath.Join(in, name) }
	for _, name := range []string{"lun1", "lun2", "plain"} {
		if err := os.WriteFile(at(name), make([]byte, 8192), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := newFinder(Places{Devices: []string{at("*")}})
	f.wwid = func(path string) string {
		return map[string]string{at("lun1"): "naa.1", at("lun2"): "naa.2"}[path]
	}
	for _, c := range []struct {
		place api.Place
		path  string
		says  string
	}{
		{api.Place{Address: at("lun1"), WWID: "naa.1"}, at("lun1"), ""},
		{api.Place{Address: at("lun1"), WWID: "naa.2"}, at("lun2"), ""},
		{api.Place{Address: "/dev/sdz", WWID: "naa.2"}, at("lun2"), ""},
		{api.Place{Address: at("lun1"), WWID: "naa.3"}, "", "LUN naa.3"},
		{api.Place{Address: at("lun1")}, "", "is the LUN naa.1"},
		{api.Place{Address: at("plain"), Size: 8192}, at("plain"), ""},
		{api.Place{Address: at("plain"), Size: 8704}, "", "has 8192 bytes"},
		{api.Place{Address: at("nothing"), Size: 8192}, "", "there is nothing"},
		{api.Place{Address: "/etc/passwd"}, "", "not in folders or devices"},
		{api.Place{Address: in + "/../x"}, "", "not in folders or devices"},
	} {
		dev, err := f.raw(t.Context(), c.place)
		switch {
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%+v: %v", c.place, err)
		case err != nil && !errors.Is(err, ErrNotSeen):
			t.Errorf("%+v: %v, which does not say that it is not seen", c.place, err)
		case c.says == "" && err != nil:
			t.Errorf("%+v: %v", c.place, err)
		case err == nil:
			if dev.Info().Name != c.path {
				t.Errorf("%+v: %s", c.place, dev.Info().Name)
			}
			dev.Close()
		}
	}
}
