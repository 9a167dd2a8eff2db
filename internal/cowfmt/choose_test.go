package cowfmt

import (
	"bytes"
	"errors"
	"testing"
)

// at returns a header copy of the given epoch and sequence, changed in bytes where change says so.
func at(t *testing.T, epoch uint32, sequence uint64, change ...func(b []byte)) []byte {
	h := cloneHeader()
	h.Epoch, h.Sequence, h.TableEpoch = epoch, sequence, 1
	b := mustEncode(t, h)
	for _, f := range change {
		f(b)
	}
	return b
}

func TestChoose(t *testing.T) {
	damaged := func(b []byte) { b[fixedSize+20] ^= 1 }
	noMagic := func(b []byte) { b[0] = 0 }
	nextVersion := func(b []byte) { b[atVersion] = 2; seal(b) }
	unknown := func(b []byte) { b[atIncompatible] = 1; seal(b) }
	nonsense := func(b []byte) { b[atRole] = 9; seal(b) }
	otherStore := func(b []byte) { b[atUUID] = 9; seal(b) }
	for name, c := range map[string]struct {
		a, b     []byte
		copy     int
		problems [2]error
		err      error
	}{
		"equal":                     {at(t, 3, 9), at(t, 3, 9), 0, [2]error{}, nil},
		"0 by sequence":             {at(t, 3, 10), at(t, 3, 9), 0, [2]error{1: ErrStale}, nil},
		"1 by sequence":             {at(t, 3, 9), at(t, 3, 10), 1, [2]error{ErrStale}, nil},
		"0 by epoch":                {at(t, 4, 1), at(t, 3, 9), 0, [2]error{1: ErrStale}, nil},
		"1 by epoch":                {at(t, 3, 9), at(t, 4, 1), 1, [2]error{ErrStale}, nil},
		"0 damaged":                 {at(t, 3, 9, damaged), at(t, 3, 9), 1, [2]error{ErrCorrupt}, nil},
		"1 damaged":                 {at(t, 3, 9), at(t, 3, 10, damaged), 0, [2]error{1: ErrCorrupt}, nil},
		"0 empty":                   {make([]byte, HeaderSize), at(t, 3, 9), 1, [2]error{ErrNotStore}, nil},
		"1 without magic":           {at(t, 3, 9), at(t, 3, 9, noMagic), 0, [2]error{1: ErrNotStore}, nil},
		"0 unreadable":              {nil, at(t, 3, 9), 1, [2]error{ErrCorrupt}, nil},
		"1 short":                   {at(t, 3, 9), at(t, 3, 9)[:512], 0, [2]error{1: ErrCorrupt}, nil},
		"no store":                  {make([]byte, HeaderSize), make([]byte, HeaderSize), 0, [2]error{ErrNotStore, ErrNotStore}, ErrNotStore},
		"both damaged":              {at(t, 3, 9, damaged), at(t, 3, 9, damaged), 0, [2]error{ErrCorrupt, ErrCorrupt}, ErrCorrupt},
		"damaged and empty":         {at(t, 3, 9, damaged), make([]byte, HeaderSize), 0, [2]error{ErrCorrupt, ErrNotStore}, ErrCorrupt},
		"both unreadable":           {nil, nil, 0, [2]error{ErrCorrupt, ErrCorrupt}, ErrCorrupt},
		"newer has a later version": {at(t, 3, 10, nextVersion), at(t, 3, 9), 0, [2]error{ErrVersion, ErrStale}, ErrVersion},
		"older has a later version": {at(t, 3, 9, nextVersion), at(t, 3, 10), 1, [2]error{ErrStale}, nil},
		"newer has a feature":       {at(t, 3, 9), at(t, 4, 1, unknown), 1, [2]error{ErrStale, ErrUnknownFeature}, ErrUnknownFeature},
		"older has a feature":       {at(t, 3, 9), at(t, 2, 99, unknown), 0, [2]error{1: ErrStale}, nil},
		"only one, with a feature":  {nil, at(t, 3, 9, unknown), 1, [2]error{ErrCorrupt, ErrUnknownFeature}, ErrUnknownFeature},
		"newer is invalid":          {at(t, 3, 9), at(t, 3, 10, nonsense), 1, [2]error{ErrStale, ErrInvalid}, ErrInvalid},
		"two writers":               {at(t, 3, 9), at(t, 3, 9, func(b []byte) { b[atOpens]++; seal(b) }), 0, [2]error{}, ErrCorrupt},
		"two stores":                {at(t, 3, 9), at(t, 1, 1, otherStore), 0, [2]error{}, ErrCorrupt},
		"junk past the length":      {at(t, 3, 9), at(t, 3, 9, func(b []byte) { b[HeaderSize-1] = 1 }), 0, [2]error{}, nil},
	} {
		got, err := Choose([2][]byte{c.a, c.b})
		if !errors.Is(err, c.err) {
			t.Errorf("%s: error is %v, want %v", name, err, c.err)
		}
		if err != nil && c.err != ErrNotStore && errors.Is(err, ErrNotStore) {
			t.Errorf("%s: %v must not pass for no store at all", name, err)
		}
		for i, p := range got.Problem {
			if !errors.Is(p, c.problems[i]) {
				t.Errorf("%s: copy %d has problem %v, want %v", name, i, p, c.problems[i])
			}
		}
		if got.Copy != c.copy || (got.Header != nil) != (c.err == nil) {
			t.Errorf("%s: copy %d, header %v", name, got.Copy, got.Header)
		}
		if got.Header == nil {
			continue
		}
		if want := [2][]byte{c.a, c.b}[c.copy]; !bytes.Equal(mustEncode(t, got.Header), want) {
			t.Errorf("%s: not the header of copy %d: %v", name, c.copy, got.Header)
		}
	}
}

// A header write that is cut off anywhere leaves the old or the new header.
func TestChooseTornWrite(t *testing.T) {
	h := cloneHeader()
	h.Progress.Data = make([]byte, MaxProgress)
	old := mustEncode(t, h)
	h.Sequence++
	h.Progress.Data = bytes.Repeat([]byte{7}, MaxProgress)
	next := mustEncode(t, h)
	var images [][2][]byte
	for n := 0; n <= len(used(next))+512; n += 512 {
		torn := append(bytes.Clone(next[:n]), old[n:]...)
		images = append(images, [2][]byte{torn, old}, [2][]byte{next, torn})
	}
	for i, image := range images {
		c, err := Choose(image)
		if err != nil || c.Header.Sequence != 9 && c.Header.Sequence != 10 || i%2 == 1 && c.Header.Sequence != 10 {
			t.Errorf("image %d: %v, %v", i, c.Header, err)
		}
	}
}
