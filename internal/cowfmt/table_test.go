package cowfmt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"pgregory.net/rapid"
)

// flagsFor returns random flags, none past the volume's end.
func flagsFor(t *rapid.T, h *Header, index int64) []byte {
	flags := rapid.SliceOfN(rapid.Byte(), FlagBytes, FlagBytes).Draw(t, "flags")
	for bit := range int64(FlagsPerSector) {
		if index*FlagsPerSector+bit >= h.Chunks() {
			flags[bit/8] &^= 1 << (bit % 8)
		}
	}
	return flags
}

func TestSectorRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := genHeader(t)
		if h.Role == RoleState {
			t.Skip("has no table")
		}
		index := rapid.OneOf(rapid.Int64Range(0, h.Layout.TableSectors-1), rapid.Just(h.TableSectors()-1)).Draw(t, "index")
		epoch := rapid.Uint32Range(h.TableEpoch, h.Epoch).Draw(t, "epoch")
		flags := flagsFor(t, h, index)
		b := bytes.Repeat([]byte{0xff}, SectorSize)
		h.EncodeSector(b, index, flags, epoch)
		got, e, err := h.DecodeSector(b, index)
		if err != nil || e != epoch || !bytes.Equal(got, flags) {
			t.Fatalf("epoch %d, %v; flags %x, want %x", e, err, got, flags)
		}
		if &got[0] != &b[0] || cap(got) != FlagBytes {
			t.Fatal("the flags are not the sector's own")
		}
		if _, _, err := h.DecodeFrozenSector(b, index); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("taken for one of the frozen table: %v", err)
		}
		h.EncodeFrozenSector(b, index, flags, epoch)
		if got, e, err := h.DecodeFrozenSector(b, index); err != nil || e != epoch || !bytes.Equal(got, flags) {
			t.Fatalf("frozen: epoch %d, %v; flags %x, want %x", e, err, got, flags)
		}
		if _, _, err := h.DecodeSector(b, index); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("a sector of the frozen table is taken for one of the other: %v", err)
		}
		h.EncodeSector(b, index, flags, epoch)
		inPlace := append(bytes.Clone(flags), make([]byte, 8)...)
		h.EncodeSector(inPlace, index, inPlace[:FlagBytes], epoch)
		if !bytes.Equal(inPlace, b) {
			t.Fatal("encoding in place gives another sector")
		}
	})
}

func testSector(h *Header, index int64, epoch uint32) []byte {
	flags := make([]byte, FlagBytes)
	for i := range flags {
		flags[i] = byte(i * 7)
	}
	b := make([]byte, SectorSize)
	h.EncodeSector(b, index, flags, epoch)
	return b
}

func TestSectorGolden(t *testing.T) {
	golden(t, "sector", testSector(cloneHeader(), 5, 3))
	h, b := frozenHeader(), make([]byte, SectorSize)
	h.EncodeFrozenSector(b, 5, testSector(cloneHeader(), 5, 3)[:FlagBytes], 1)
	golden(t, "frozensector", b)
}

// The check sum is a plain CRC-32C over what docs/FORMAT.md says, so that others can compute it too.
func TestSectorSum(t *testing.T) {
	h := cloneHeader()
	b := testSector(h, 5, 3)
	all := append(bytes.Clone(h.UUID[:]), 5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0)
	want := crc32.Checksum(append(all, b[:508]...), crc32.MakeTable(crc32.Castagnoli))
	if got := binary.LittleEndian.Uint32(b[508:]); got != want {
		t.Errorf("CRC is %#x, want %#x", got, want)
	}
	all[23] = 0x80 // the frozen table
	want = crc32.Checksum(append(all, b[:508]...), crc32.MakeTable(crc32.Castagnoli))
	h.EncodeFrozenSector(b, 5, b[:FlagBytes], 3)
	if got := binary.LittleEndian.Uint32(b[508:]); got != want {
		t.Errorf("frozen: CRC is %#x, want %#x", got, want)
	}
}

func TestSectorBitFlips(t *testing.T) {
	h := cloneHeader()
	b := testSector(h, 5, 3)
	for bit := range 8 * len(b) {
		b[bit/8] ^= 1 << (bit % 8)
		if _, _, err := h.DecodeSector(b, 5); !errors.Is(err, ErrCorrupt) {
			t.Errorf("bit %d flipped: %v", bit, err)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
}

func TestSectorRefused(t *testing.T) {
	h := cloneHeader() // epoch 3, table from epoch 2 on, 41 sectors in use
	last := h.TableSectors() - 1
	past := make([]byte, SectorSize)
	past[(h.Chunks()-last*FlagsPerSector)/8] = 1 << ((h.Chunks() - last*FlagsPerSector) % 8)
	binary.LittleEndian.PutUint32(past[sectorEpoch:], 3)
	binary.LittleEndian.PutUint32(past[sectorCRC:], h.sectorSum(past, last))
	for name, c := range map[string]struct {
		sector []byte
		index  int64
		change func(h *Header)
		want   error
	}{
		"good":                 {testSector(h, 5, 3), 5, nil, nil},
		"of the first epoch":   {testSector(h, 5, 2), 5, nil, nil},
		"of another place":     {testSector(h, 5, 3), 6, nil, ErrCorrupt},
		"of a far place":       {testSector(h, 5, 3), 5 + 1024, nil, ErrCorrupt},
		"of another store":     {testSector(h, 5, 3), 5, func(h *Header) { h.UUID[15] ^= 1 }, ErrCorrupt},
		"of an old generation": {testSector(h, 5, 3), 5, func(h *Header) { h.Generation++ }, ErrCorrupt},
		"of an old epoch":      {testSector(h, 5, 1), 5, nil, ErrStale},
		"of a later epoch":     {testSector(h, 5, 4), 5, nil, ErrStale},
		"zeros":                {make([]byte, SectorSize), 5, func(h *Header) { h.TableEpoch = 0 }, ErrCorrupt},
		"ones":                 {bytes.Repeat([]byte{0xff}, SectorSize), 5, nil, ErrCorrupt},
		"flag past the end":    {past, last, nil, ErrCorrupt},
		"short":                {testSector(h, 5, 3)[:511], 5, nil, ErrInvalid},
		"index negative":       {testSector(h, 5, 3), -1, nil, ErrInvalid},
		"index too large":      {testSector(h, 5, 3), h.Layout.TableSectors, nil, ErrInvalid},
	} {
		h := h.Clone()
		if c.change != nil {
			c.change(h)
		}
		flags, _, err := h.DecodeSector(c.sector, c.index)
		if !errors.Is(err, c.want) || (flags == nil) != (err != nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The last flag of the volume is good, the next is not; a sector past the end must be all clear.
func TestSectorLastFlags(t *testing.T) {
	h := cloneHeader()
	for _, size := range []int64{512, 64 << 10, 7 * 64 << 10, 8 * 64 << 10, 9 * 64 << 10, 4031 * 64 << 10, 4032 * 64 << 10, 4033 * 64 << 10} {
		h.Size = size
		for chunk := range h.Chunks() + 2 {
			flags := make([]byte, FlagBytes)
			sector, bit := FlagPlace(chunk)
			flags[bit/8] = 1 << (bit % 8)
			if got := h.clearPastEnd(flags, sector); got != (chunk < h.Chunks()) {
				t.Errorf("size %d, chunk %d of %d: %v", size, chunk, h.Chunks(), got)
			}
		}
	}
}

func TestEncodeSectorPanics(t *testing.T) {
	h := cloneHeader()
	ones := bytes.Repeat([]byte{0xff}, FlagBytes)
	for name, f := range map[string]func(){
		"short sector":      func() { h.EncodeSector(make([]byte, 511), 0, ones, 3) },
		"short flags":       func() { h.EncodeSector(make([]byte, 512), 0, ones[1:], 3) },
		"index":             func() { h.EncodeSector(make([]byte, 512), h.Layout.TableSectors, ones, 3) },
		"flag past the end": func() { h.EncodeSector(make([]byte, 512), h.TableSectors()-1, ones, 3) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func TestSectorDoesNotAllocate(t *testing.T) {
	h := cloneHeader()
	b := testSector(h, 5, 3)
	dst := make([]byte, SectorSize)
	if n := testing.AllocsPerRun(100, func() {
		flags, epoch, err := h.DecodeSector(b, 5)
		if err != nil {
			t.Fatal(err)
		}
		h.EncodeSector(dst, 5, flags, epoch)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEncodeSector(b *testing.B) {
	h := cloneHeader()
	flags, dst := make([]byte, FlagBytes), make([]byte, SectorSize)
	b.SetBytes(SectorSize)
	b.ReportAllocs()
	for b.Loop() {
		h.EncodeSector(dst, 5, flags, 3)
	}
}

func BenchmarkDecodeSector(b *testing.B) {
	h := cloneHeader()
	sector := testSector(h, 5, 3)
	b.SetBytes(SectorSize)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := h.DecodeSector(sector, 5); err != nil {
			b.Fatal(err)
		}
	}
}
