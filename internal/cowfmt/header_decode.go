package cowfmt

import (
	"encoding/binary"
	"fmt"

	"github.com/google/uuid"
)

// DecodeHeader reads one header copy of HeaderSize bytes; nothing of b is kept. Which copy to believe is
// for Choose. A header that only allows reading is returned without an error: see Features.Writable.
func DecodeHeader(b []byte) (*Header, error) {
	p, err := checkCopy(b)
	if err != nil {
		return nil, err
	}
	return p.decode()
}

// Brief is what the first bytes of a header copy say in every version.
type Brief struct {
	UUID     uuid.UUID
	Epoch    uint32
	Sequence uint64
}

// DecodeBrief reads the first bytes of a header copy, 48 at least; ok is false without the magic. The check sum covers
// the whole copy: whether it is intact is not known.
func DecodeBrief(b []byte) (h Brief, ok bool) {
	if len(b) < frozenSize || string(b[:len(Magic)]) != Magic {
		return h, false
	}
	return Brief{
		UUID:     uuid.UUID(b[atUUID : atUUID+16]),
		Epoch:    binary.LittleEndian.Uint32(b[atEpoch:]),
		Sequence: binary.LittleEndian.Uint64(b[atSequence:]),
	}, true
}

// intact is a header copy whose check sum is right, with what every version has.
type intact struct {
	used    []byte
	version uint32
	Brief
}

// checkCopy returns ErrNotStore or ErrCorrupt unless b is an intact copy, of whatever version.
func checkCopy(b []byte) (*intact, error) {
	if len(b) != HeaderSize {
		return nil, fmt.Errorf("%w: %d bytes were read, a header copy has %d", ErrCorrupt, len(b), HeaderSize)
	}
	if string(b[:len(Magic)]) != Magic {
		return nil, fmt.Errorf("%w: no %q at its start", ErrNotStore, Magic)
	}
	length := binary.LittleEndian.Uint32(b[atLength:])
	if length < frozenSize || length > HeaderSize {
		return nil, fmt.Errorf("%w: length is %d", ErrCorrupt, length)
	}
	b = b[:length]
	stored, sum := binary.LittleEndian.Uint32(b[atCRC:]), crcAround(0, b, atCRC)
	if stored != sum {
		return nil, fmt.Errorf("%w: CRC is %#08x, should be %#08x", ErrCorrupt, stored, sum)
	}
	brief, _ := DecodeBrief(b)
	return &intact{used: b, version: binary.LittleEndian.Uint32(b[atVersion:]), Brief: brief}, nil
}

func (p *intact) decode() (*Header, error) {
	if p.version != Version1 {
		return nil, fmt.Errorf("%w %d, this program knows %d: use a newer one", ErrVersion, p.version, Version1)
	}
	if len(p.used) < fixedSize {
		return nil, fmt.Errorf("%w: length is %d, less than %d", ErrCorrupt, len(p.used), fixedSize)
	}
	h := &Header{UUID: p.UUID, Epoch: p.Epoch, Sequence: p.Sequence}
	if err := h.setFixed(&fields{b: p.used[frozenSize:fixedSize]}); err != nil {
		return nil, err
	}
	if err := h.Features.Readable(); err != nil {
		return nil, err
	}
	var seen [lastKnownRecord + 1]bool
	for rest := p.used[fixedSize:]; len(rest) > 0; {
		var r Record
		var err error
		if r, rest, err = nextRecord(rest); err != nil {
			return nil, err
		}
		if r.Type <= lastKnownRecord {
			if seen[r.Type] && r.Type != recordGrant && r.Type != recordStack {
				return nil, fmt.Errorf("%w: two records of type %d", ErrCorrupt, r.Type)
			}
			seen[r.Type] = true
		}
		if err := h.setRecord(r); err != nil {
			return nil, fmt.Errorf("record of type %d: %w", r.Type, err)
		}
	}
	if err := h.Validate(); err != nil {
		return nil, err
	}
	return h, nil
}

// setFixed takes the fixed part from the end of its frozen bytes on.
func (h *Header) setFixed(f *fields) error {
	h.Features = Features{Compatible: f.u64(), ReadOnly: f.u64(), Incompatible: f.u64()}
	h.Size = f.i64()
	h.ChunkSize = f.i64()
	h.Created = f.i64()
	h.Generation = f.u64()
	h.Opens = f.u64()
	h.Layout = Layout{Table: [2]int64{f.i64(), f.i64()}, TableSectors: f.i64(), Data: f.i64()}
	h.TableEpoch = f.u32()
	h.Role = Role(f.u8())
	h.Cache = CacheMode(f.u8())
	h.ActiveTable = int(f.u8())
	flags := f.u8()
	h.CutLoose = flags&flagCutLoose != 0
	if flags&^flagCutLoose != 0 {
		return fmt.Errorf("%w flags %#x", ErrInvalid, flags)
	}
	return f.rest()
}

func (h *Header) setRecord(r Record) error {
	if r.Type > lastKnownRecord {
		if r.Flags&RecordCritical != 0 {
			return fmt.Errorf("%w: it is critical: use the program that made the store, or a newer one", ErrUnknownFeature)
		}
		h.Extra = append(h.Extra, r.clone())
		return nil
	}
	if r.Flags != recordFlags(r.Type) {
		return fmt.Errorf("%w: flags %#x: use the program that made the store, or a newer one", ErrUnknownFeature, r.Flags)
	}
	f := &fields{b: r.Data}
	switch r.Type {
	case recordName:
		h.Name = string(f.take(len(r.Data)))
	case recordMaster:
		h.Master = new(f.locator())
	case recordMasterIdentity:
		h.MasterIdentity = f.identity()
	case recordOrigin:
		h.Origin = new(f.locator())
	case recordOriginIdentity:
		h.OriginIdentity = f.identity()
	case recordOwner:
		h.Owner = &Owner{Host: f.uuid(), Boot: f.uuid(), Instance: f.uuid(), Since: f.i64(), HostName: f.text(), Address: f.text()}
	case recordGrant:
		h.Grants = append(h.Grants, Grant{ID: f.uuid(), Host: f.uuid(), Boot: f.uuid(), Since: f.i64(), Slot: f.u16(),
			HostName: f.text(), Address: f.text()})
	case recordStack:
		h.Stack = append(h.Stack, f.stackEntry())
	case recordProgress:
		h.Progress.Kind = f.u16()
		h.Progress.Data = append(h.Progress.Data, f.take(len(f.b))...)
	case recordTableGroups:
		h.TableGroups = append(h.TableGroups, f.take(len(r.Data))...)
	case recordSnapshot:
		if h.Role != RoleSnapshot {
			return fmt.Errorf("%w: only a snapshot store has it", ErrInvalid)
		}
		h.Cut, h.Layout.Frozen = f.uuid(), f.i64()
	}
	return f.end()
}

func (f *fields) locator() (l Locator) {
	l.Kind = LocatorKind(f.u8())
	f.zeros(1)
	l.Address = f.text()
	return l
}

func (f *fields) identity() *Identity {
	id := &Identity{Kind: IdentityKind(f.u8())}
	f.zeros(7)
	id.Size = f.i64()
	switch id.Kind {
	case IdentityStore:
		id.UUID = f.uuid()
		id.Opens = f.u64()
	case IdentityWWID:
		id.WWID = f.text()
	case IdentitySamples:
		copy(id.Digest[:], f.take(len(id.Digest)))
	}
	return id
}

func (f *fields) stackEntry() (e StackEntry) {
	e.Kind = StackKind(f.u8())
	e.State = f.u8()
	e.OnError = f.u8()
	f.zeros(1)
	e.Timeout = f.u32()
	e.UUID = f.uuid()
	e.CutID = f.uuid()
	e.Generation = f.u64()
	e.Cursor = f.i64()
	e.Locator = f.locator()
	return e
}
