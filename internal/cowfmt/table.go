package cowfmt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// A table sector: 504 bytes of flags, its epoch, its CRC.
const (
	sectorEpoch = FlagBytes
	sectorCRC   = FlagBytes + 4
)

// GroupReady says whether table group g of the active area was initialised. One that wasn't is all clear,
// and what is on the disk there must not be read.
func (h *Header) GroupReady(g int) bool {
	return g/8 < len(h.TableGroups) && h.TableGroups[g/8]>>(g%8)&1 != 0
}

// SetGroupReady records that table group g of the active area was initialised: all its 2048 sectors are
// durable there, those past the volume's end too, so that the volume can grow into them.
func (h *Header) SetGroupReady(g int) {
	for len(h.TableGroups) <= g/8 {
		h.TableGroups = append(h.TableGroups, 0)
	}
	h.TableGroups[g/8] |= 1 << (g % 8)
}

// EncodeSector makes table sector index in dst (SectorSize bytes) out of flags (FlagBytes bytes, which may
// be dst's own). It panics for flags of chunks the volume doesn't have, and for an index outside the
// table area: such a sector would be refused when it is needed, which is worse than stopping now.
func (h *Header) EncodeSector(dst []byte, index int64, flags []byte, epoch uint32) {
	h.encodeSector(dst, index, 0, flags, epoch)
}

// EncodeFrozenSector is EncodeSector for a snapshot's frozen table.
func (h *Header) EncodeFrozenSector(dst []byte, index int64, flags []byte, epoch uint32) {
	h.encodeSector(dst, index, frozenSalt, flags, epoch)
}

// frozenSalt is added to the index of a sector of the frozen table in its check sum, so that it is never taken for one
// of the saved table, which would say that chunks are saved which never were.
const frozenSalt = math.MinInt64

func (h *Header) encodeSector(dst []byte, index, salt int64, flags []byte, epoch uint32) {
	if len(dst) != SectorSize || len(flags) != FlagBytes || index < 0 || index >= h.Layout.TableSectors {
		panic(fmt.Sprintf("cowfmt: table sector %d of %d: %d bytes out of %d of flags", index, h.Layout.TableSectors, len(dst), len(flags)))
	}
	if !h.clearPastEnd(flags, index) {
		panic(fmt.Sprintf("cowfmt: table sector %d: a flag past the last of %d chunks", index, h.Chunks()))
	}
	copy(dst, flags)
	binary.LittleEndian.PutUint32(dst[sectorEpoch:], epoch)
	binary.LittleEndian.PutUint32(dst[sectorCRC:], h.sectorSum(dst, index|salt))
}

// DecodeSector returns the flags of table sector index, which are b's own first FlagBytes bytes, and its
// epoch. It returns ErrCorrupt for a sector that is damaged or of another place, store or generation,
// and ErrStale for one that is older than the area's present life or newer than the header.
func (h *Header) DecodeSector(b []byte, index int64) (flags []byte, epoch uint32, err error) {
	return h.decodeSector(b, index, 0)
}

// DecodeFrozenSector is DecodeSector for a snapshot's frozen table.
func (h *Header) DecodeFrozenSector(b []byte, index int64) (flags []byte, epoch uint32, err error) {
	return h.decodeSector(b, index, frozenSalt)
}

func (h *Header) decodeSector(b []byte, index, salt int64) (flags []byte, epoch uint32, err error) {
	if len(b) != SectorSize || index < 0 || index >= h.Layout.TableSectors {
		return nil, 0, fmt.Errorf("table sector %d of %d in %d bytes: %w: there is no such sector", index, h.Layout.TableSectors, len(b), ErrInvalid)
	}
	if stored := binary.LittleEndian.Uint32(b[sectorCRC:]); stored != h.sectorSum(b, index|salt) {
		return nil, 0, fmt.Errorf("table sector %d: %w: CRC is %#08x, should be %#08x: damaged, or of another place, store or generation",
			index, ErrCorrupt, stored, h.sectorSum(b, index|salt))
	}
	epoch = binary.LittleEndian.Uint32(b[sectorEpoch:])
	switch {
	case epoch < h.TableEpoch:
		return nil, 0, fmt.Errorf("table sector %d: %w: of epoch %d, but the table was begun in epoch %d", index, ErrStale, epoch, h.TableEpoch)
	case epoch > h.Epoch:
		return nil, 0, fmt.Errorf("table sector %d: %w header: the sector is of epoch %d, the header of %d: read the header again", index, ErrStale, epoch, h.Epoch)
	case !h.clearPastEnd(b[:FlagBytes], index):
		return nil, 0, fmt.Errorf("table sector %d: %w: a flag past the last of %d chunks", index, ErrCorrupt, h.Chunks())
	}
	return b[:FlagBytes:FlagBytes], epoch, nil
}

func (h *Header) sectorSum(b []byte, index int64) uint32 {
	return crc32.Update(placeCRC(h.UUID, index, h.Generation), castagnoli, b[:sectorCRC])
}

// clearPastEnd says whether no chunk that the volume doesn't have has a flag.
func (h *Header) clearPastEnd(flags []byte, index int64) bool {
	valid := h.Chunks() - index*FlagsPerSector
	if valid >= FlagsPerSector {
		return true
	}
	valid = max(valid, 0)
	if rest := flags[valid/8:]; rest[0]>>(valid%8) != 0 || !allZero(rest[1:]) {
		return false
	}
	return true
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
