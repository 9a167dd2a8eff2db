package reserve

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// What a LUN does with all this is shown by test/iscsi.

func TestKey(t *testing.T) {
	a, b := uuid.MustParse("11111111-2222-3333-4444-555555555555"), uuid.MustParse("99999999-2222-3333-4444-555555555555")
	keys := []uint64{Key(a, b), Key(b, a), Key(a, a), Key(b, b), Key(a, uuid.Nil), Key(uuid.Nil, uuid.Nil)}
	if slices.Contains(keys, 0) || len(slices.Compact(slices.Sorted(slices.Values(keys)))) != len(keys) {
		t.Errorf("%#x", keys)
	}
	// All hosts must come to the same one, whatever version they run.
	if got := Key(a, b); got != 0x29bce23a917fb928 {
		t.Errorf("%#x", got)
	}
}

func TestNotSupported(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("file", func(t *testing.T) { notSupported(t, path) })
	t.Run("loop", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("SKIPPED: a loop device needs root")
		}
		out, err := exec.Command("losetup", "--find", "--show", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		loop := strings.TrimSpace(string(out))
		defer func() {
			if out, err := exec.Command("losetup", "--detach", loop).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		}()
		notSupported(t, loop)
	})
}

func notSupported(t *testing.T, path string) {
	dev, err := blockdev.OpenFile(t.Context(), path, blockdev.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if can, err := Supported(dev); can || err != nil {
		t.Errorf("supported: %v, %v", can, err)
	}
	_, err = Read(dev)
	for what, err := range map[string]error{
		"register": Register(dev, 1), "unregister": Unregister(dev, 1), "preempt": Preempt(dev, 1, 2), "read": err,
	} {
		if !errors.Is(err, blockdev.ErrNotSupported) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestDecode(t *testing.T) {
	answer := func(generation uint32, list ...byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, generation)
		return append(binary.BigEndian.AppendUint32(b, uint32(len(list))), list...)
	}
	keys := answer(7, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0, 0, 0, 0, 2)
	held := answer(7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0x05, 0, 0)
	s, err := decode(keys, held)
	if err != nil || s.Generation != 7 || !slices.Equal(s.Keys, []uint64{1, 0xff00000000000002}) || s.Holder != 1 ||
		s.Type != TypeWriteExclusiveRegistrantsOnly || !s.Registered(1) || s.Registered(2) {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err = decode(keys, answer(7)); err != nil || s.Type != TypeNone || s.Holder != 0 {
		t.Errorf("not reserved: %+v, %v", s, err)
	}
	if _, err = decode(keys, answer(8)); !errors.Is(err, errChanged) {
		t.Errorf("two generations: %v", err)
	}
	for n := range keys {
		if s, err := decode(keys[:n], held); err == nil {
			t.Errorf("keys in %d bytes: %+v", n, s)
		}
	}
	for n := range held {
		if s, err := decode(keys, held[:n]); err == nil {
			t.Errorf("reservation in %d bytes: %+v", n, s)
		}
	}
	if s, err := decode(answer(7, 1, 2, 3), held); err == nil {
		t.Errorf("half a key: %+v", s)
	}
	if s, err := decode(keys, answer(7, 1, 2, 3)); err == nil {
		t.Errorf("half a reservation: %+v", s)
	}
}

func TestResult(t *testing.T) {
	if size := unsafe.Sizeof(sgHeader{}); size != 88 {
		t.Fatalf("struct sg_io_hdr has %d bytes", size)
	}
	fixed := []byte{0x70, 0, 0x05, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0}
	attention := []byte{0x72, 0x06, 0x2a, 0x03}
	for what, c := range map[string]struct {
		h     sgHeader
		sense []byte
		again bool
		is    error
	}{
		"good":           {},
		"conflict":       {h: sgHeader{status: statusConflict}, is: ErrConflict},
		"no such opcode": {h: sgHeader{status: statusCheckCondition, senseLen: 14}, sense: fixed, is: blockdev.ErrNotSupported},
		"attention":      {h: sgHeader{status: statusCheckCondition, senseLen: 4}, sense: attention, again: true, is: errAny},
		"no sense":       {h: sgHeader{status: statusCheckCondition, senseLen: 0}, sense: attention, is: errAny},
		"busy":           {h: sgHeader{status: statusBusy}, again: true, is: errAny},
		"no path":        {h: sgHeader{hostStatus: 1}, is: errAny},
	} {
		again, err := c.h.result(c.sense)
		if again != c.again || (err == nil) != (c.is == nil) || c.is != errAny && !errors.Is(err, c.is) {
			t.Errorf("%s: %v, %v", what, again, err)
		}
	}
	if !hasType([]byte{0, 8, 0, 0x80, 0x20, 0, 0, 0}) || hasType([]byte{0, 8, 0, 0x80, 0x10, 0, 0, 0}) || !hasType(make([]byte, 8)) {
		t.Error("the mask of types")
	}
}

var errAny = errors.New("any")
