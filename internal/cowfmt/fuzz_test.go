package cowfmt

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"
)

// Whatever decodes must mean the same when it is encoded and decoded again. A second try with the check
// sum put right lets the fuzzer past it.
func FuzzDecodeHeader(f *testing.F) {
	for _, h := range []*Header{cloneHeader(), snapshotHeader(), frozenHeader(), pendingHeader(), stateHeader()} {
		f.Add(used(mustEncode(f, h)))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		b := make([]byte, HeaderSize)
		copy(b, in)
		checkHeader(t, b)
		if n := binary.LittleEndian.Uint32(b[atLength:]); n >= frozenSize && n <= HeaderSize {
			checkHeader(t, seal(b))
		}
		checkHeader(t, in)
	})
}

func checkHeader(t *testing.T, b []byte) {
	h, err := DecodeHeader(b)
	if c, chosen := Choose([2][]byte{b, nil}); (err == nil) != (chosen == nil) || err == nil && !reflect.DeepEqual(c.Header, h) {
		t.Fatalf("Choose says %v, DecodeHeader %v", chosen, err)
	}
	if err != nil || h.Features.Writable() != nil {
		return
	}
	again, err := h.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if h2, err := DecodeHeader(again); err != nil || !reflect.DeepEqual(h, h2) {
		t.Fatalf("%v: got %#v\nwant %#v", err, h2, h)
	}
	if h.DataEnd() < MetadataSize || h.Groups() < 0 || h.String() == "" {
		t.Fatalf("ends at %d with %d groups", h.DataEnd(), h.Groups())
	}
}

func FuzzDecodeSector(f *testing.F) {
	h := cloneHeader()
	f.Add(testSector(h, 5, 3), int64(5))
	f.Add(testSector(h, 5, 3), int64(40))
	f.Add([]byte{}, int64(-1))
	f.Fuzz(func(t *testing.T, b []byte, index int64) {
		checkSector(t, h, b, index)
		if len(b) == SectorSize {
			b = bytes.Clone(b)
			for _, salt := range []int64{0, frozenSalt} {
				binary.LittleEndian.PutUint32(b[sectorCRC:], h.sectorSum(b, index|salt))
				checkSector(t, h, b, index)
			}
		}
	})
}

// checkSector: what decodes is encoded to the same bytes, and is never a sector of both tables.
func checkSector(t *testing.T, h *Header, b []byte, index int64) {
	again := make([]byte, SectorSize)
	flags, epoch, err := h.DecodeSector(b, index)
	if err == nil {
		h.EncodeSector(again, index, flags, epoch)
	}
	frozen, frozenEpoch, frozenErr := h.DecodeFrozenSector(b, index)
	if frozenErr == nil {
		h.EncodeFrozenSector(again, index, frozen, frozenEpoch)
	}
	switch {
	case err != nil && frozenErr != nil:
	case err == nil && frozenErr == nil:
		t.Fatalf("sector %d is one of both tables: %x", index, b)
	case !bytes.Equal(again, b):
		t.Fatalf("encoded again: %x\nwas: %x", again, b)
	}
}

func FuzzDecodeSlot(f *testing.F) {
	claim, migration := encodeSlots(f, id(0x11), 7)
	f.Add(claim[:slotPayload], 7)
	f.Add(migration[:slotPayload], 7)
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, b []byte, slot int) {
		checkSlots(t, b, slot)
		padded := make([]byte, SlotSize)
		copy(padded, b)
		clear(padded[slotPayload:])
		checkSlots(t, sealSlot(padded, claimMagic, id(0x11), slot), slot)
		checkSlots(t, sealSlot(padded, migrationMagic, id(0x11), slot), slot)
	})
}

func checkSlots(t *testing.T, b []byte, slot int) {
	if s, used, err := DecodeClaimSlot(b, id(0x11), slot); used && err == nil {
		if again, err := s.Encode(id(0x11), slot); err != nil || !bytes.Equal(again[:slotPayload], b[:slotPayload]) {
			t.Fatalf("%v: encoded again: %x\nwas: %x", err, again, b)
		}
	}
	if s, used, err := DecodeMigrationSlot(b, id(0x11), slot); used && err == nil {
		if again, err := s.Encode(id(0x11), slot); err != nil || !bytes.Equal(again[:slotPayload], b[:slotPayload]) {
			t.Fatalf("%v: encoded again: %x\nwas: %x", err, again, b)
		}
	}
}
