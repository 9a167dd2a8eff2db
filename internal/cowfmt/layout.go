package cowfmt

import "fmt"

// Places and sizes in bytes, unless the name says otherwise. See docs/FORMAT.md.
const (
	HeaderSize      = 64 << 10  // of one header copy
	ClaimOffset     = 128 << 10 // of claim slot 0
	ClaimSlots      = 64
	MigrationOffset = 384 << 10 // of migration slot 0
	MigrationSlots  = 64
	SlotSize        = 4 << 10
	MetadataSize    = 1 << 20 // what is before the table areas, all of a state store
	Alignment       = 1 << 20 // of table areas and the data area

	SectorSize      = 512  // of a table sector
	FlagBytes       = 504  // of flags in a table sector
	FlagsPerSector  = 4032 // chunks a table sector has flags for
	SectorsPerGroup = 2048 // table sectors that are initialised together, 1 MiB

	MinChunk = 4 << 10
	MaxChunk = 1 << 20
	MaxSize  = 64 << 40 // of a volume
)

// HeaderOffsets is where the two header copies are: at both ends of the metadata, so that one run of bad
// sectors or one stray write from the front doesn't take both.
var HeaderOffsets = [2]int64{0, MetadataSize - HeaderSize}

// NewLayout lays out a store for a volume of size bytes in chunks of chunk bytes, with table areas for
// twice the volume (at most MaxSize). It returns ErrInvalid for sizes a store can't have.
func NewLayout(role Role, size, chunk int64) (Layout, error) {
	if err := checkSizes(role, size, chunk); err != nil {
		return Layout{}, err
	}
	if role == RoleState {
		return Layout{}, nil
	}
	capacity := roundUp(sectorsFor(min(2*size, MaxSize), chunk), SectorsPerGroup)
	area := capacity * SectorSize
	return Layout{
		Table:        [2]int64{MetadataSize, MetadataSize + area},
		TableSectors: capacity,
		Data:         MetadataSize + 2*area,
	}, nil
}

// WithFrozen is the layout with a frozen table: an area of the same size behind the two table areas.
func (l Layout) WithFrozen() Layout {
	l.Frozen = l.Data
	l.Data += l.TableSectors * SectorSize
	return l
}

// checkSizes returns ErrInvalid if no store of this role, size and chunk size is possible.
func checkSizes(role Role, size, chunk int64) error {
	switch {
	case role < RoleClone || role > RoleState:
		return fmt.Errorf("%w role %d", ErrInvalid, role)
	case size <= 0 || size > MaxSize || size%SectorSize != 0:
		return fmt.Errorf("%w volume size %d: must be a multiple of %d, up to %d", ErrInvalid, size, SectorSize, int64(MaxSize))
	case chunk < MinChunk || chunk > MaxChunk || chunk&(chunk-1) != 0:
		return fmt.Errorf("%w chunk size %d: must be a power of two from %d to %d", ErrInvalid, chunk, MinChunk, MaxChunk)
	}
	return nil
}

// check returns ErrInvalid unless the parts are aligned, in order, apart from each other, and the table
// areas hold flags for the volume. The sizes must have been checked.
func (l Layout) check(role Role, size, chunk int64) error {
	if role == RoleState {
		if l != (Layout{}) {
			return fmt.Errorf("%w layout (%v): a state store has no tables and no data", ErrInvalid, l)
		}
		return nil
	}
	maxSectors := roundUp(sectorsFor(MaxSize, MinChunk), SectorsPerGroup)
	area := l.TableSectors * SectorSize
	switch {
	case l.TableSectors <= 0 || l.TableSectors > maxSectors || l.TableSectors%SectorsPerGroup != 0:
		return fmt.Errorf("%w table capacity of %d sectors: must be a multiple of %d, up to %d", ErrInvalid, l.TableSectors, SectorsPerGroup, maxSectors)
	case l.TableSectors < sectorsFor(size, chunk):
		return fmt.Errorf("%w table capacity of %d sectors: the volume needs %d", ErrInvalid, l.TableSectors, sectorsFor(size, chunk))
	case l.Table[0]%Alignment != 0 || l.Table[1]%Alignment != 0 || l.Data%Alignment != 0:
		return fmt.Errorf("%w layout (%v): not aligned to %d", ErrInvalid, l, Alignment)
	case l.Table[0] < MetadataSize || l.Table[0] > MaxSize || l.Table[1] > MaxSize || l.Data > MaxSize:
		return fmt.Errorf("%w layout (%v): a part is out of bounds", ErrInvalid, l)
	case l.Table[1] < l.Table[0]+area || l.Data < l.Table[1]+area:
		return fmt.Errorf("%w layout (%v): parts overlap or are out of order", ErrInvalid, l)
	case l.Frozen != 0:
		return l.checkFrozen(role, area)
	}
	return nil
}

// checkFrozen checks the place of the frozen table, an area of so many bytes. The other parts must have been checked.
func (l Layout) checkFrozen(role Role, area int64) error {
	switch {
	case role != RoleSnapshot:
		return fmt.Errorf("%w layout (%v): only a snapshot has a frozen table", ErrInvalid, l)
	case l.Frozen%Alignment != 0:
		return fmt.Errorf("%w layout (%v): not aligned to %d", ErrInvalid, l, Alignment)
	case l.Frozen < l.Table[1]+area || l.Frozen > MaxSize || l.Data < l.Frozen+area:
		return fmt.Errorf("%w layout (%v): parts overlap or are out of order", ErrInvalid, l)
	}
	return nil
}

// TableOffset returns where sector index of table area 0 or 1 is, in bytes from the store's start.
func (l Layout) TableOffset(area int, index int64) int64 {
	return l.Table[area] + index*SectorSize
}

func (l Layout) String() string {
	frozen := ""
	if l.Frozen != 0 {
		frozen = fmt.Sprintf("frozen table at %d, ", l.Frozen)
	}
	return fmt.Sprintf("tables at %d and %d, %d sectors each, %sdata at %d", l.Table[0], l.Table[1], l.TableSectors, frozen, l.Data)
}

// Chunks returns how many chunks the volume has; the last may be a partial one.
func (h *Header) Chunks() int64 {
	return divUp(h.Size, h.ChunkSize)
}

// TableSectors returns how many table sectors are in use, 0 for a state store. The capacity is
// Layout.TableSectors.
func (h *Header) TableSectors() int64 {
	if h.Role == RoleState {
		return 0
	}
	return sectorsFor(h.Size, h.ChunkSize)
}

// Groups returns how many table groups are in use.
func (h *Header) Groups() int {
	return int(divUp(h.TableSectors(), SectorsPerGroup))
}

// DataEnd returns how many bytes the store's device must have.
func (h *Header) DataEnd() int64 {
	if h.Role == RoleState {
		return MetadataSize
	}
	return h.Layout.Data + h.Chunks()*h.ChunkSize
}

// ChunkOffset returns where a chunk's data is, in bytes from the store's start.
func (h *Header) ChunkOffset(chunk int64) int64 {
	return h.Layout.Data + chunk*h.ChunkSize
}

// FlagPlace returns where a chunk's flag is: the sector's index in the table, and the bit in its flags,
// which is bit%8 (from the least significant) of byte bit/8.
func FlagPlace(chunk int64) (sector int64, bit int) {
	return chunk / FlagsPerSector, int(chunk % FlagsPerSector)
}

// sectorsFor returns how many table sectors a volume needs.
func sectorsFor(size, chunk int64) int64 {
	return divUp(divUp(size, chunk), FlagsPerSector)
}

func divUp(n, unit int64) int64   { return (n + unit - 1) / unit }
func roundUp(n, unit int64) int64 { return divUp(n, unit) * unit }
