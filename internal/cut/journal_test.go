package cut

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
)

func TestHandedOverAgain(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(dir, 1, well)
		k, ctx, err := w.daemon(zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Make(ctx, w.request(api.QuiesceTry)); err != nil {
			t.Fatal(err)
		}
		if err := k.Hand(theCut, []byte(`{"a":1}`)); err != nil {
			t.Fatal(err)
		}
		if k, ctx, err = w.daemon(zerolog.Nop()); err != nil {
			t.Fatal(err)
		}
		all := k.Handovers()
		if len(all) != 1 || all[0].Cut != theCut || string(all[0].Payload) != `{"a":1}` || all[0].Domain != theDomain || !k.Has(theCut) {
			t.Fatalf("%+v", all)
		}
		if _, err := k.Make(ctx, w.request(api.QuiesceTry)); err == nil {
			t.Error("the same cut is made twice")
		}
		if err := k.Done(theCut); err != nil {
			t.Error(err)
		}
		if k, _, err = w.daemon(zerolog.Nop()); err != nil || len(k.Handovers()) != 0 {
			t.Errorf("%+v, %v", k.Handovers(), err)
		}
	})
}

// A cut at a time, and none that the journal can't take.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(dir, 1, only("make v0 0", slow))
		k, ctx, err := w.daemon(zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		r := w.request(api.QuiesceTry)
		made := make(chan error)
		go func() {
			_, err := k.Make(ctx, r)
			made <- err
		}()
		time.Sleep(time.Second)
		if _, err := k.Make(ctx, r); !errors.Is(err, ErrBusy) {
			t.Errorf("a second one: %v", err)
		}
		began := time.Now()
		if err := k.Await(ctx, theDomain.UUID.String()); err != nil || time.Since(began) < time.Second {
			t.Errorf("waited %s, %v", time.Since(began), err)
		}
		if err := <-made; err != nil {
			t.Error(err)
		}
		for _, bad := range []string{"", "../x", strings.ToUpper(theCut)} {
			r.Cut = bad
			if _, err := k.Make(ctx, r); err == nil {
				t.Errorf("cut %q", bad)
			}
		}
		r.Cut = "3f2a9c1e-0000-4000-8000-00000000000b"
		if err := os.RemoveAll(w.dir); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Make(ctx, r); err == nil || len(w.guest.frozen) != 1 || len(w.stores) != 1 {
			t.Errorf("without a journal: %v, frozen %v, stores %v", err, w.guest.frozen, w.stores)
		}
	})
}

// A guest that came frozen is thawed, however long its agent takes.
func TestThaw(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		w := newWorld(dir, 0, func(call string) fault {
			if strings.HasPrefix(call, "thaw") && time.Since(begun) < time.Hour {
				return refused
			}
			return none
		})
		w.guest.frozen = []span{{from: time.Now()}}
		k, ctx, err := w.daemon(zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { k.Run(ctx); close(ended) }()
		time.Sleep(time.Minute)
		if err := k.Thaw(theDomain); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if id := theDomain.UUID.String(); !k.MaybeFrozen(id) {
			t.Error("not known to be frozen")
		}
		time.Sleep(time.Hour)
		w.kill()
		<-ended
		if w.guest.isFrozen() || k.MaybeFrozen(theDomain.UUID.String()) {
			t.Error("frozen still")
		}
	})
}

// What can't be read is said, and kept.
func TestDamagedRecords(t *testing.T) {
	dir := t.TempDir()
	good := `{"version":1,"cut":"` + theCut + `","phase":"making","domain":{"Name":"web1","UUID":"` + theDomain.UUID.String() + `"},"snapshots":null}`
	files := map[string]string{
		theCut + suffix: good, "3f2a9c1e-0000-4000-8000-00000000000b" + suffix: good, "x" + suffix: strings.ReplaceAll(good, theCut, "x"),
		"3f2a9c1e-0000-4000-8000-00000000000c" + suffix: "", "3f2a9c1e-0000-4000-8000-00000000000d" + suffix + ".new": "{",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	_, records, err := openJournal(dir, zerolog.New(&log))
	if err != nil || len(records) != 1 || records[theCut] == nil || records[theCut].Domain != theDomain {
		t.Errorf("%+v, %v", records, err)
	}
	if n := strings.Count(log.String(), "virsh domfsthaw"); n != 3 {
		t.Errorf("%d complaints: %s", n, &log)
	}
	for _, bad := range []string{`"version":2`, `"phase":"x"`, `"volume":"x"`, `"snapshot":"../../x"`} {
		key, _, _ := strings.Cut(bad, ":")
		text := strings.Replace(good, key+":1", bad, 1)
		text = strings.Replace(text, `"phase":"making"`, map[bool]string{true: bad, false: `"phase":"making"`}[key == `"phase"`], 1)
		if key == `"volume"` || key == `"snapshot"` {
			text = strings.Replace(text, "null", `[{`+bad+`}]`, 1)
		}
		if _, err := decode([]byte(text), theCut); err == nil {
			t.Errorf("taken: %s", text)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"cut":"` + theCut + `","phase":"making","domain":{},"snapshots":[{"volume":"` + theCut + `","snapshot":"` + theCut + `"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decode(b, theCut)
		if err != nil {
			return
		}
		j, _, err := openJournal(t.TempDir(), zerolog.New(io.Discard))
		if err != nil {
			t.Fatal(err)
		}
		if err := j.put(r); err != nil {
			t.Fatal(err)
		}
		if again, err := readRecord(j.path(theCut), theCut); err != nil || again.Domain != r.Domain || again.Phase != r.Phase {
			t.Fatalf("%+v, %+v, %v", r, again, err)
		}
	})
}
