package cowfmt

import (
	"encoding/binary"
	"fmt"
)

// Magic begins a header copy.
const Magic = "VIRT-COW"

// The fixed part of a header copy. The first frozenSize bytes are the same in every version, so that any
// program can check a copy and tell which is newer. New fields become records.
const (
	atVersion  = 8  // u32
	atLength   = 12 // u32, bytes in use, records included
	atCRC      = 16 // u32, over the bytes in use, itself taken as zero
	atEpoch    = 20 // u32
	atSequence = 24 // u64
	atUUID     = 32 // 16 bytes
	frozenSize = 48

	atCompatible   = 48  // u64
	atReadOnly     = 56  // u64
	atIncompatible = 64  // u64
	atSize         = 72  // i64
	atChunkSize    = 80  // i64
	atCreated      = 88  // i64
	atGeneration   = 96  // u64
	atOpens        = 104 // u64
	atTable0       = 112 // i64
	atTable1       = 120 // i64
	atTableSectors = 128 // i64
	atData         = 136 // i64
	atTableEpoch   = 144 // u32
	atRole         = 148 // u8
	atCache        = 149 // u8
	atActiveTable  = 150 // u8
	atFlags        = 151 // u8
	atReserved     = 152 // zero up to fixedSize
	fixedSize      = 192
)

// flagCutLoose is the bit of Header.CutLoose in the byte at atFlags.
const flagCutLoose = 1

// Encode returns the HeaderSize bytes of a header copy; both copies have the same bytes. It returns
// ErrInvalid for a header that DecodeHeader would refuse or that doesn't fit, and what Features.Writable
// returns for a store this program may not write.
func (h *Header) Encode() ([]byte, error) {
	if err := h.Features.Writable(); err != nil {
		return nil, fmt.Errorf("header of %q: %w", h.Name, err)
	}
	if err := h.Validate(); err != nil {
		return nil, err
	}
	b := h.appendRecords(h.fixedPart())
	if len(b) > HeaderSize {
		return nil, fmt.Errorf("header of %q: %w: needs %d of %d bytes, %d of them for records of a newer program",
			h.Name, ErrInvalid, len(b), HeaderSize, h.extraSize())
	}
	binary.LittleEndian.PutUint32(b[atLength:], uint32(len(b)))
	binary.LittleEndian.PutUint32(b[atCRC:], crcAround(0, b, atCRC))
	return b[:HeaderSize], nil
}

func (h *Header) fixedPart() []byte {
	b := make([]byte, fixedSize, HeaderSize)
	le := binary.LittleEndian
	copy(b, Magic)
	le.PutUint32(b[atVersion:], Version1)
	le.PutUint32(b[atEpoch:], h.Epoch)
	le.PutUint64(b[atSequence:], h.Sequence)
	copy(b[atUUID:], h.UUID[:])
	le.PutUint64(b[atCompatible:], h.Features.Compatible)
	le.PutUint64(b[atReadOnly:], h.Features.ReadOnly)
	le.PutUint64(b[atIncompatible:], h.Features.Incompatible)
	le.PutUint64(b[atSize:], uint64(h.Size))
	le.PutUint64(b[atChunkSize:], uint64(h.ChunkSize))
	le.PutUint64(b[atCreated:], uint64(h.Created))
	le.PutUint64(b[atGeneration:], h.Generation)
	le.PutUint64(b[atOpens:], h.Opens)
	le.PutUint64(b[atTable0:], uint64(h.Layout.Table[0]))
	le.PutUint64(b[atTable1:], uint64(h.Layout.Table[1]))
	le.PutUint64(b[atTableSectors:], uint64(h.Layout.TableSectors))
	le.PutUint64(b[atData:], uint64(h.Layout.Data))
	le.PutUint32(b[atTableEpoch:], h.TableEpoch)
	b[atRole] = byte(h.Role)
	b[atCache] = byte(h.Cache)
	b[atActiveTable] = byte(h.ActiveTable)
	if h.CutLoose {
		b[atFlags] |= flagCutLoose
	}
	return b
}

func (h *Header) appendRecords(b []byte) []byte {
	b = appendRecord(b, recordName, 0, []byte(h.Name))
	if h.Master != nil {
		b = appendRecord(b, recordMaster, 0, appendLocator(nil, *h.Master))
	}
	if h.MasterIdentity != nil {
		b = appendRecord(b, recordMasterIdentity, 0, appendIdentity(nil, h.MasterIdentity))
	}
	if h.Origin != nil {
		b = appendRecord(b, recordOrigin, 0, appendLocator(nil, *h.Origin))
	}
	if h.OriginIdentity != nil {
		b = appendRecord(b, recordOriginIdentity, 0, appendIdentity(nil, h.OriginIdentity))
	}
	if h.Owner != nil {
		b = appendRecord(b, recordOwner, 0, appendOwner(nil, h.Owner))
	}
	for i := range h.Grants {
		b = appendRecord(b, recordGrant, 0, appendGrant(nil, &h.Grants[i]))
	}
	for i := range h.Stack {
		b = appendRecord(b, recordStack, 0, appendStackEntry(nil, &h.Stack[i]))
	}
	if h.Progress.Kind != 0 {
		data := binary.LittleEndian.AppendUint16(nil, h.Progress.Kind)
		b = appendRecord(b, recordProgress, 0, append(data, h.Progress.Data...))
	}
	if len(h.TableGroups) > 0 {
		b = appendRecord(b, recordTableGroups, 0, h.TableGroups)
	}
	if h.Role == RoleSnapshot {
		data := binary.LittleEndian.AppendUint64(h.Cut[:], uint64(h.Layout.Frozen))
		b = appendRecord(b, recordSnapshot, recordFlags(recordSnapshot), data)
	}
	for _, r := range h.Extra {
		b = appendRecord(b, r.Type, r.Flags, r.Data)
	}
	return b
}

func (h *Header) extraSize() (n int64) {
	for _, r := range h.Extra {
		n += recordHead + roundUp(int64(len(r.Data)), recordHead)
	}
	return n
}

func appendLocator(b []byte, l Locator) []byte {
	return appendText(append(b, byte(l.Kind), 0), l.Address)
}

func appendIdentity(b []byte, id *Identity) []byte {
	b = append(b, byte(id.Kind), 0, 0, 0, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(id.Size))
	switch id.Kind {
	case IdentityStore:
		b = append(b, id.UUID[:]...)
		b = binary.LittleEndian.AppendUint64(b, id.Opens)
	case IdentityWWID:
		b = appendText(b, id.WWID)
	case IdentitySamples:
		b = append(b, id.Digest[:]...)
	}
	return b
}

func appendOwner(b []byte, o *Owner) []byte {
	b = append(b, o.Host[:]...)
	b = append(b, o.Boot[:]...)
	b = append(b, o.Instance[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(o.Since))
	return appendText(appendText(b, o.HostName), o.Address)
}

func appendGrant(b []byte, g *Grant) []byte {
	b = append(b, g.ID[:]...)
	b = append(b, g.Host[:]...)
	b = append(b, g.Boot[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(g.Since))
	b = binary.LittleEndian.AppendUint16(b, g.Slot)
	return appendText(appendText(b, g.HostName), g.Address)
}

func appendStackEntry(b []byte, e *StackEntry) []byte {
	b = append(b, byte(e.Kind), e.State, e.OnError, 0)
	b = binary.LittleEndian.AppendUint32(b, e.Timeout)
	b = append(b, e.UUID[:]...)
	b = append(b, e.CutID[:]...)
	b = binary.LittleEndian.AppendUint64(b, e.Generation)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Cursor))
	return appendLocator(b, e.Locator)
}
