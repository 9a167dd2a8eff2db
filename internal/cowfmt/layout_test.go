package cowfmt

import (
	"errors"
	"testing"
)

var roles = []Role{RoleClone, RoleSnapshot, RoleState}

func TestLayoutExtremes(t *testing.T) {
	sizes := []int64{512, 4096, 1<<20 - 512, 10 << 30, 10<<30 + 512, 1 << 40, MaxSize/2 - 512, MaxSize / 2, MaxSize/2 + 512, MaxSize - 512, MaxSize}
	for chunk := int64(MinChunk); chunk <= MaxChunk; chunk *= 2 {
		// Sizes around the borders of a sector and of a group.
		more := []int64{FlagsPerSector * chunk, FlagsPerSector*chunk + 512, SectorsPerGroup * FlagsPerSector * chunk, SectorsPerGroup*FlagsPerSector*chunk + 512}
		for _, size := range append(more, sizes...) {
			for _, role := range roles {
				if size <= MaxSize {
					checkLayout(t, role, size, chunk)
				}
			}
		}
	}
}

func checkLayout(t *testing.T, role Role, size, chunk int64) {
	t.Helper()
	l, err := NewLayout(role, size, chunk)
	if err != nil {
		t.Fatal(err)
	}
	h := &Header{Role: role, Size: size, ChunkSize: chunk, Layout: l}
	if err := l.check(role, size, chunk); err != nil {
		t.Errorf("%v %d/%d: %v", role, size, chunk, err)
	}
	if role == RoleState {
		if l != (Layout{}) || h.TableSectors() != 0 || h.Groups() != 0 || h.DataEnd() != 1<<20 {
			t.Errorf("state store: %v, %d sectors, end %d", l, h.TableSectors(), h.DataEnd())
		}
		return
	}
	area := l.TableSectors * 512
	parts := []int64{1 << 20, l.Table[0], l.Table[0] + area, l.Table[1], l.Table[1] + area, l.Data}
	for i, p := range parts {
		if p%(1<<20) != 0 || i > 0 && p < parts[i-1] {
			t.Errorf("%d/%d: unaligned or overlapping: %v", size, chunk, parts)
		}
	}
	if n := h.Chunks(); (n-1)*chunk >= size || n*chunk < size {
		t.Errorf("%d/%d: %d chunks", size, chunk, n)
	}
	if n := h.TableSectors(); (n-1)*4032 >= h.Chunks() || n*4032 < h.Chunks() || int64(h.Groups())*2048 < n || int64(h.Groups()-1)*2048 >= n {
		t.Errorf("%d/%d: %d sectors, %d groups", size, chunk, n, h.Groups())
	}
	if room := l.TableSectors * 4032 * chunk; room < min(2*size, MaxSize) {
		t.Errorf("%d/%d: the table has flags for only %d bytes", size, chunk, room)
	}
	last, bit := FlagPlace(h.Chunks() - 1)
	if last != h.TableSectors()-1 || last*4032+int64(bit) != h.Chunks()-1 || l.TableOffset(0, last)+512 > l.Table[1] || l.TableOffset(1, last)+512 > l.Data {
		t.Errorf("%d/%d: last flag is bit %d of sector %d", size, chunk, bit, last)
	}
	if end := h.DataEnd(); end != h.ChunkOffset(h.Chunks()) || end < l.Data+size || end >= l.Data+size+chunk {
		t.Errorf("%d/%d: data from %d to %d", size, chunk, l.Data, end)
	}
	if f := l.WithFrozen(); f.Frozen != l.Data || f.Data != f.Frozen+area || (f.check(role, size, chunk) == nil) != (role == RoleSnapshot) {
		t.Errorf("%v %d/%d with a frozen table: %v", role, size, chunk, f)
	}
	// Grown to twice its size, or the largest, the layout still serves.
	if err := l.check(role, min(2*size, MaxSize), chunk); err != nil {
		t.Errorf("%d/%d grown: %v", size, chunk, err)
	}
}

func TestLayoutRefused(t *testing.T) {
	for _, c := range []struct {
		role        Role
		size, chunk int64
	}{
		{0, 512, 4096}, {4, 512, 4096}, {RoleClone, 0, 4096}, {RoleClone, -512, 4096}, {RoleClone, 513, 4096}, {RoleClone, MaxSize + 512, 4096},
		{RoleClone, 512, 0}, {RoleClone, 512, 2048}, {RoleClone, 512, 2 << 20}, {RoleState, 512, 5000}, {RoleSnapshot, 512, -4096},
	} {
		if l, err := NewLayout(c.role, c.size, c.chunk); !errors.Is(err, ErrInvalid) || l != (Layout{}) {
			t.Errorf("%+v: %v, %v", c, l, err)
		}
	}
}

// The parts of the metadata as docs/FORMAT.md has them.
func TestMetadataPlaces(t *testing.T) {
	parts := []struct{ begin, end int64 }{
		{HeaderOffsets[0], HeaderOffsets[0] + HeaderSize},
		{ClaimOffset, ClaimOffset + ClaimSlots*SlotSize},
		{MigrationOffset, MigrationOffset + MigrationSlots*SlotSize},
		{HeaderOffsets[1], HeaderOffsets[1] + HeaderSize},
	}
	want := []struct{ begin, end int64 }{{0, 64 << 10}, {128 << 10, 384 << 10}, {384 << 10, 640 << 10}, {960 << 10, 1 << 20}}
	for i := range parts {
		if parts[i] != want[i] {
			t.Errorf("part %d is %v, want %v", i, parts[i], want[i])
		}
	}
}

// The example of docs/FORMAT.md.
func TestLayoutExample(t *testing.T) {
	l, err := NewLayout(RoleClone, 100<<30, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	h := &Header{Role: RoleClone, Size: 100 << 30, ChunkSize: 64 << 10, Layout: l}
	sector, bit := FlagPlace(50 << 30 / (64 << 10))
	for _, c := range []struct{ got, want int64 }{
		{h.Chunks(), 1638400}, {h.TableSectors(), 407}, {int64(h.Groups()), 1}, {l.TableSectors, 2048},
		{l.Table[0], 1 << 20}, {l.Table[1], 2 << 20}, {l.Data, 3 << 20}, {h.DataEnd(), 107377328128},
		{sector, 203}, {int64(bit), 704}, {l.TableOffset(1, sector), 2201088}, {h.ChunkOffset(819200), 53690236928},
	} {
		if c.got != c.want {
			t.Errorf("got %d, want %d", c.got, c.want)
		}
	}
}

func TestGroupReady(t *testing.T) {
	h := snapshotHeader()
	h.TableGroups = nil
	for _, g := range []int{0, 7, 8, 32} {
		if h.GroupReady(g) {
			t.Errorf("group %d is ready from the start", g)
		}
		h.SetGroupReady(g)
	}
	for g := range 100 {
		if h.GroupReady(g) != (g == 0 || g == 7 || g == 8 || g == 32) {
			t.Errorf("group %d: %v", g, h.GroupReady(g))
		}
	}
	if len(h.TableGroups) != 5 {
		t.Errorf("bitmap has %d bytes", len(h.TableGroups))
	}
}
