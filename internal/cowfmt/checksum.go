package cowfmt

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/google/uuid"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// placeCRC begins a check sum with what a sector or slot must belong to: store UUID, index, and
// generation (0 for slots). It goes byte by byte because what is handed to crc32.Update escapes to the
// heap, and 32 bytes aren't worth an allocation for each table sector.
func placeCRC(store uuid.UUID, index int64, generation uint64) uint32 {
	var place [32]byte
	copy(place[:], store[:])
	binary.LittleEndian.PutUint64(place[16:], uint64(index))
	binary.LittleEndian.PutUint64(place[24:], generation)
	crc := ^uint32(0)
	for _, b := range place {
		crc = castagnoli[byte(crc)^b] ^ crc>>8
	}
	return ^crc
}

var zeroCRC [4]byte

// crcAround goes on with crc over b as if the four bytes at hole were zero.
func crcAround(crc uint32, b []byte, hole int) uint32 {
	crc = crc32.Update(crc, castagnoli, b[:hole])
	crc = crc32.Update(crc, castagnoli, zeroCRC[:])
	return crc32.Update(crc, castagnoli, b[hole+4:])
}
