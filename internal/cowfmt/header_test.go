package cowfmt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

func TestHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := genHeader(t)
		b, err := h.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if len(b) != HeaderSize || !allZero(b[len(used(b)):]) {
			t.Fatalf("%d bytes, or not padded with zeros", len(b))
		}
		in := bytes.Clone(b)
		got, err := DecodeHeader(in)
		if err != nil {
			t.Fatal(err)
		}
		clear(in) // nothing may be kept of it
		if !reflect.DeepEqual(got, h) {
			t.Fatalf("got %#v\nwant %#v", got, h)
		}
	})
}

func TestHeaderGolden(t *testing.T) {
	for name, h := range map[string]*Header{"clone": cloneHeader(), "snapshot": snapshotHeader(), "frozen": frozenHeader(), "pending": pendingHeader(), "state": stateHeader()} {
		golden(t, name, used(mustEncode(t, h)))
	}
}

// Every bit of the fixed part and a sample of those of the records must matter.
func TestHeaderBitFlips(t *testing.T) {
	b := mustEncode(t, cloneHeader())
	bits := rand.New(rand.NewPCG(1, 2)).Perm(8 * len(used(b)))[:1000]
	for bit := range 8 * fixedSize {
		bits = append(bits, bit)
	}
	for _, bit := range bits {
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := DecodeHeader(b); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotStore) {
			t.Errorf("bit %d of byte %d flipped: got %v", bit%8, bit/8, err)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
}

// With everything at its limit a header still fits, and leaves room for records of newer programs.
func TestHeaderWorstCaseFits(t *testing.T) {
	layout, err := NewLayout(RoleClone, MaxSize, MinChunk)
	if err != nil {
		t.Fatal(err)
	}
	h := &Header{
		UUID: id(1), Name: fillTo(MaxName), Role: RoleClone, Size: MaxSize, ChunkSize: MinChunk, Layout: layout, Cache: CacheOn,
		Master:         &Locator{LocatorRaw, fillTo(MaxAddress)},
		MasterIdentity: &Identity{Kind: IdentityWWID, Size: 1, WWID: fillTo(MaxWWID)},
		Owner:          &Owner{id(1), id(1), id(1), fillTo(MaxHostName), fillTo(MaxHostAddress), 1},
		Progress:       Progress{ProgressMerge, make([]byte, MaxProgress)},
	}
	h.SetGroupReady(h.Groups() - 1)
	for i := range MaxGrants {
		h.Grants = append(h.Grants, Grant{id(byte(i + 1)), id(byte(i + 1)), id(1), fillTo(MaxHostName), fillTo(MaxHostAddress), uint16(i), 1})
	}
	for i := range MaxStack {
		h.Stack = append(h.Stack, StackEntry{StackSnapshot, StackActive, OnErrorBreakGuestWrite, 1, id(byte(i + 1)), 1, MaxSize, id(1), Locator{LocatorStore, fillTo(MaxAddress)}})
	}
	b := mustEncode(t, h)
	// A snapshot has an origin more, but no stack.
	if room := HeaderSize - len(used(b)); room < 10_000 {
		t.Errorf("only %d bytes are left for records of newer programs", room)
	}
	if got, err := DecodeHeader(b); err != nil || !reflect.DeepEqual(got, h) {
		t.Errorf("got %v, %v", got, err)
	}
	h.Extra = []Record{{Type: 99, Data: make([]byte, HeaderSize-len(used(b))-recordHead)}}
	if b = mustEncode(t, h); len(used(b)) != HeaderSize {
		t.Errorf("full header uses %d bytes", len(used(b)))
	}
	h.Extra = append(h.Extra, Record{Type: 99})
	if _, err := h.Encode(); !errors.Is(err, ErrInvalid) {
		t.Errorf("8 bytes too many: %v", err)
	}
}

func TestUnknownFeatures(t *testing.T) {
	for name, c := range map[string]struct {
		at                int
		decoded, writable error
	}{
		"compatible":   {atCompatible, nil, nil},
		"read-only":    {atReadOnly, nil, ErrReadOnlyFeature},
		"incompatible": {atIncompatible, ErrUnknownFeature, nil},
	} {
		b := mustEncode(t, stateHeader())
		b[c.at+7] = 0x80
		h, err := DecodeHeader(seal(b))
		if !errors.Is(err, c.decoded) {
			t.Errorf("%s: decoding: %v", name, err)
		}
		if err != nil {
			continue
		}
		if err := h.Features.Writable(); !errors.Is(err, c.writable) {
			t.Errorf("%s: writable: %v", name, err)
		}
		if again, err := h.Encode(); !errors.Is(err, c.writable) || err == nil && !bytes.Equal(again, b) {
			t.Errorf("%s: encoding again: %v", name, err)
		}
	}
	h := stateHeader()
	h.Features.Incompatible = 1
	if _, err := h.Encode(); !errors.Is(err, ErrUnknownFeature) {
		t.Errorf("encoding an incompatible header: %v", err)
	}
}

// withRecords returns a valid header copy with more records behind its own.
func withRecords(t *testing.T, records ...Record) []byte {
	b := mustEncode(t, stateHeader())
	more := used(b)
	for _, r := range records {
		more = appendRecord(more[:len(more):len(more)], r.Type, r.Flags, r.Data)
	}
	copy(b, more)
	binary.LittleEndian.PutUint32(b[atLength:], uint32(len(more)))
	return seal(b)
}

func TestRecords(t *testing.T) {
	for name, c := range map[string]struct {
		records []Record
		want    error
	}{
		"unknown":        {[]Record{{99, 0, []byte("later")}, {99, 0x8000, nil}}, nil},
		"critical":       {[]Record{{99, RecordCritical, nil}}, ErrUnknownFeature},
		"flags on known": {[]Record{{recordTableGroups, 2, nil}}, ErrUnknownFeature},
		"not critical":   {[]Record{{recordSnapshot, 0, nil}}, ErrUnknownFeature},
		"of a snapshot":  {[]Record{{recordSnapshot, RecordCritical, make([]byte, 24)}}, ErrInvalid},
		"type zero":      {[]Record{{0, 0, []byte("later")}}, ErrCorrupt},
		"two names":      {[]Record{{recordName, 0, []byte("again")}}, ErrCorrupt},
		"too short":      {[]Record{{recordOwner, 0, make([]byte, 20)}}, ErrCorrupt},
		"too long":       {[]Record{{recordOwner, 0, make([]byte, 61)}}, ErrCorrupt},
		"reserved":       {[]Record{{recordMaster, 0, []byte{1, 9, 1, 0, '/'}}}, ErrInvalid},
		"text too short": {[]Record{{recordMaster, 0, []byte{1, 0, 200, 0, '/'}}}, ErrCorrupt},
	} {
		b := withRecords(t, c.records...)
		h, err := DecodeHeader(b)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if c.want == nil && !bytes.Equal(mustEncode(t, h), b) {
			t.Errorf("%s: not the same when encoded again", name)
		}
	}
}

func TestRecordStructure(t *testing.T) {
	good := withRecords(t, Record{99, 0, []byte("later")})
	length := len(used(good))
	for name, change := range map[string]func(b []byte){
		"padding":          func(b []byte) { b[length-1] = 1 },
		"record too long":  func(b []byte) { b[length-12] = 9 },
		"length not of 8":  func(b []byte) { b[atLength] -= 4 },
		"only a head":      func(b []byte) { b[atLength] -= 8 },
		"length is small":  func(b []byte) { binary.LittleEndian.PutUint32(b[atLength:], frozenSize) },
		"length of 4G":     func(b []byte) { binary.LittleEndian.PutUint32(b[length-12:], 1<<32-1) },
		"half a head left": func(b []byte) { b[atLength] += 4 },
	} {
		b := bytes.Clone(good)
		change(b)
		if _, err := DecodeHeader(seal(b)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, l := range []uint32{0, frozenSize - 1, HeaderSize + 1, 1<<32 - 1} {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[atLength:], l)
		if _, err := DecodeHeader(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("length %d: %v", l, err)
		}
	}
	b := bytes.Clone(good)
	b[atVersion] = 2
	if _, err := DecodeHeader(seal(b)); !errors.Is(err, ErrVersion) {
		t.Errorf("version 2: %v", err)
	}
	b = bytes.Clone(good)
	b[atFlags] = 2
	if _, err := DecodeHeader(seal(b)); !errors.Is(err, ErrInvalid) {
		t.Errorf("unknown flag: %v", err)
	}
	b = bytes.Clone(good)
	b[fixedSize-1] = 1
	if _, err := DecodeHeader(seal(b)); !errors.Is(err, ErrInvalid) {
		t.Errorf("reserved byte: %v", err)
	}
}

func TestClone(t *testing.T) {
	h := cloneHeader()
	h.Origin, h.OriginIdentity = &Locator{LocatorRaw, "/o"}, &Identity{Kind: IdentityWWID}
	c := h.Clone()
	if !reflect.DeepEqual(c, h) {
		t.Fatalf("got %#v\nwant %#v", c, h)
	}
	c.TableGroups[0]++
	c.Master.Address, c.Origin.Address = "x", "x"
	c.MasterIdentity.Size, c.OriginIdentity.Size = 7, 7
	c.Owner.Since, c.Grants[0].Since, c.Stack[0].Cursor = 7, 7, 7
	c.Progress.Data[0], c.Extra[0].Data[0] = 7, 7
	want := cloneHeader()
	want.Origin, want.OriginIdentity = &Locator{LocatorRaw, "/o"}, &Identity{Kind: IdentityWWID}
	if !reflect.DeepEqual(h, want) {
		t.Errorf("changing the copy changed the original: %#v", h)
	}
}
