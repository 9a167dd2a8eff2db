package cowfmt

import (
	"encoding/binary"
	"fmt"

	"github.com/google/uuid"
)

// Record is a header record this program doesn't know, kept to be written again.
type Record struct {
	Type  uint16
	Flags uint16
	Data  []byte
}

// RecordCritical is the flag of a record without which the store can't be understood.
const RecordCritical uint16 = 1

// The types of records. Zero is never used, so that zeros aren't a record.
const (
	recordName           uint16 = 1
	recordMaster         uint16 = 2
	recordMasterIdentity uint16 = 3
	recordOrigin         uint16 = 4
	recordOriginIdentity uint16 = 5
	recordOwner          uint16 = 6
	recordGrant          uint16 = 7 // one a grant
	recordStack          uint16 = 8 // one an entry, oldest first
	recordProgress       uint16 = 9
	recordTableGroups    uint16 = 10
	recordSnapshot       uint16 = 11 // critical
	lastKnownRecord             = recordSnapshot
)

// recordFlags are the flags that a record of a known type must have.
func recordFlags(typ uint16) uint16 {
	if typ == recordSnapshot {
		return RecordCritical
	}
	return 0
}

// recordHead is the size of a record's type, flags and length; records are padded to this too.
const recordHead = 8

func appendRecord(b []byte, typ, flags uint16, data []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, typ)
	b = binary.LittleEndian.AppendUint16(b, flags)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	b = append(b, data...)
	return append(b, make([]byte, -len(data)&(recordHead-1))...)
}

// nextRecord takes the first record off b. Data is b's own.
func nextRecord(b []byte) (r Record, rest []byte, err error) {
	if len(b) < recordHead {
		return r, nil, fmt.Errorf("%w: %d bytes left for a record", ErrCorrupt, len(b))
	}
	r.Type = binary.LittleEndian.Uint16(b)
	r.Flags = binary.LittleEndian.Uint16(b[2:])
	length := int64(binary.LittleEndian.Uint32(b[4:]))
	b = b[recordHead:]
	padded := roundUp(length, recordHead)
	if r.Type == 0 || padded > int64(len(b)) {
		return r, nil, fmt.Errorf("%w: record of type %d with %d bytes, %d are left", ErrCorrupt, r.Type, length, len(b))
	}
	if !allZero(b[length:padded]) {
		return r, nil, fmt.Errorf("%w: record of type %d is not padded with zeros", ErrCorrupt, r.Type)
	}
	r.Data = b[:length:length]
	return r, b[padded:], nil
}

func appendText(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// fields takes values off the front of b. Once b was too short all values are zero and end says so.
type fields struct {
	b   []byte
	bad error
}

func (f *fields) take(n int) []byte {
	if n > len(f.b) {
		f.bad = fmt.Errorf("%w: ends %d bytes too early", ErrCorrupt, n-len(f.b))
		f.b = nil
		return make([]byte, n)
	}
	v := f.b[:n]
	f.b = f.b[n:]
	return v
}

func (f *fields) u8() uint8       { return f.take(1)[0] }
func (f *fields) u16() uint16     { return binary.LittleEndian.Uint16(f.take(2)) }
func (f *fields) u32() uint32     { return binary.LittleEndian.Uint32(f.take(4)) }
func (f *fields) u64() uint64     { return binary.LittleEndian.Uint64(f.take(8)) }
func (f *fields) i64() int64      { return int64(f.u64()) }
func (f *fields) uuid() uuid.UUID { return uuid.UUID(f.take(16)) }
func (f *fields) text() string    { return string(f.take(int(f.u16()))) }

// zeros skips n reserved bytes. What is reserved is zero until a feature bit says otherwise.
func (f *fields) zeros(n int) {
	if !allZero(f.take(n)) && f.bad == nil {
		f.bad = fmt.Errorf("%w: reserved bytes are not zero", ErrInvalid)
	}
}

// end returns an error unless everything was taken and nothing was missing.
func (f *fields) end() error {
	if f.bad == nil && len(f.b) > 0 {
		return fmt.Errorf("%w: %d bytes too many", ErrCorrupt, len(f.b))
	}
	return f.bad
}

// rest is end for what is padded with zeros.
func (f *fields) rest() error {
	f.zeros(len(f.b))
	return f.end()
}
