// Package cowfmt is the on-disk format of a store: bytes to values and back, and nothing else. It does
// no I/O, holds no locks and starts nothing; package store reads and writes the bytes.
//
// A store begins with 1 MiB of metadata: two copies of the header, 64 claim slots and 64 migration
// slots. Two table areas and the data area follow, each on a 1 MiB boundary (a state store has none of
// the three). docs/FORMAT.md has the tables of offsets; this is the why:
//
//   - Two header copies, far apart, ordered by (epoch, sequence): a write that is cut off leaves one
//     whole copy. The first 48 bytes of a copy never change between versions, so that an older program
//     can tell that the newer copy is one it must not ignore. See Choose.
//   - What varies in length is a record (type, flags, length, payload). An unknown record is kept and
//     written again, unless it is marked critical: then the store is refused.
//   - The table is made of 512-byte sectors, the unit a disk writes atomically. Each carries its epoch
//     and a CRC over its store, its place and its generation too, so that a sector which is whole but
//     not the one asked for is refused. A bad sector is an error, never zeros: a zero says "read the
//     master", which would bring old data back.
//   - Table areas are initialised a group (1 MiB, 2048 sectors) at a time and the header says which
//     are. What lies in other groups is never looked at, so making a large clone writes next to
//     nothing and a re-used LUN's old content does no harm.
//   - A table area has room for twice the volume, so that growing it moves nothing.
//   - A clone's snapshot keeps the clone's table as it was at the cut: a third area, whose sectors have another check sum.
//
// Numbers are little-endian. CRC is CRC-32C (Castagnoli, RFC 3720 appendix B.4), as iSCSI and ext4 use.
package cowfmt
