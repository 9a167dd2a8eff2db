package blockdevtest

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

func (s *suite) testInfo(t *testing.T) {
	d := s.device(t)
	info := d.Info()
	if b := info.BlockSize; b < 512 || b > 4096 || b&(b-1) != 0 {
		t.Errorf("BlockSize %d: want a power of two from 512 to 4096", b)
	}
	if info.Size%blockdev.SectorSize != 0 {
		t.Errorf("Size %d: want a multiple of %d", info.Size, blockdev.SectorSize)
	}
	if info.Name == "" {
		t.Error("Name is empty: error messages need it")
	}
	if !info.ReadOnly {
		d.write(t, patterned(d.block, 1), d.size-d.block)
		d.zero(t, 0, d.block, true)
	}
	d.read(t, 0, d.block)
	if err := d.Flush(); err != nil && !info.ReadOnly {
		t.Errorf("Flush: %v", err)
	}
	if again := d.Info(); again != info {
		t.Errorf("Info changed from %+v to %+v", info, again)
	}
}

func (s *suite) testFresh(t *testing.T) {
	d := s.device(t)
	for _, w := range d.windows(64 << 10) {
		p := d.read(t, w[0], w[1])
		if s.freshZeros {
			d.expect(t, make([]byte, w[1]), w[0], "fresh")
		}
		d.expect(t, p, w[0], "read twice")
		d.checkExtents(t, w[0], w[1])
	}
	d.checkExtents(t, 0, d.size)
}

func (s *suite) testBoundaries(t *testing.T) {
	d := s.device(t)
	b := d.block
	first, last, all := patterned(b, 1), patterned(b, 2), patterned(4*b, 3)
	d.write(t, all, 0)
	d.write(t, all, d.size-4*b)
	d.write(t, first, 0)
	d.write(t, last, d.size-b)
	d.expect(t, first, 0, "the first block")
	d.expect(t, all[b:], b, "the blocks after the first")
	d.expect(t, all[:3*b], d.size-4*b, "the blocks before the last")
	d.expect(t, last, d.size-b, "the last block")

	for _, off := range []int64{0, b, d.size - b, d.size} {
		d.read(t, off, 0)
		d.write(t, nil, off)
		d.zero(t, off, 0, false)
		d.zero(t, off, 0, true)
		d.checkExtents(t, off, 0)
	}
	d.expect(t, first, 0, "writes of no length, the first block")
	d.expect(t, last, d.size-b, "writes of no length, the last block")
	for _, w := range d.windows(1 << 20) { // longer than one system call or message may take
		p := patterned(w[1], 4)
		d.write(t, p, w[0])
		d.expect(t, p, w[0], "a long write")
	}
}

func (s *suite) testUnalignedMemory(t *testing.T) {
	d := s.device(t)
	length := 8 * d.block
	for _, shift := range []int64{1, 3, 8, 511} {
		room := patterned(length+1024, uint64(shift))
		out := bytes.Clone(room)
		d.write(t, room[shift:shift+length], d.block)
		if n, err := d.ReadAt(out[shift:shift+length], d.block); err != nil || int64(n) != length {
			t.Fatalf("ReadAt into memory shifted by %d: %d, %v", shift, n, err)
		}
		if i := difference(out, room); i >= 0 {
			t.Fatalf("memory shifted by %d: byte %d of the buffer is wrong", shift, int64(i)-shift)
		}
	}
}

// testBadRequests checks that CheckRange has its say, and that a refused request changes nothing.
func (s *suite) testBadRequests(t *testing.T) {
	d := s.device(t)
	b, info := d.block, d.Info()
	before := d.read(t, 0, 4*b)
	end := d.read(t, d.size-4*b, 4*b)
	type bad struct {
		off, length int64
		want        error
	}
	cases := []bad{
		{-b, b, blockdev.ErrRange},
		{-b, 2 * b, blockdev.ErrRange},
		{-b, 0, blockdev.ErrRange},
		{math.MinInt64, b, blockdev.ErrRange},
		{info.Size - b, 2 * b, blockdev.ErrRange},
		{info.Size, b, blockdev.ErrRange},
		{info.Size + b, 0, blockdev.ErrRange},
		{math.MaxInt64 &^ (b - 1), 2 * b, blockdev.ErrRange}, // off + length overflows
		{1, b, blockdev.ErrAlign},
		{b / 2, b, blockdev.ErrAlign},
		{0, b + 1, blockdev.ErrAlign},
		{b, b / 2, blockdev.ErrAlign},
		{b / 2, b / 2, blockdev.ErrAlign},
		{1, 0, blockdev.ErrAlign},
	}
	check := func(what string, c bad, err error) {
		t.Helper()
		if !errors.Is(err, c.want) {
			t.Errorf("%s %d length %d: %v, want %v", what, c.off, c.length, err, c.want)
		}
	}
	for _, c := range cases {
		_, err := d.ReadAt(make([]byte, c.length), c.off)
		check("ReadAt", c, err)
		_, err = d.Extents(c.off, c.length)
		check("Extents", c, err)
		if info.ReadOnly {
			continue
		}
		_, err = d.WriteAt(patterned(c.length, 9), c.off)
		check("WriteAt", c, err)
		for _, unmap := range []bool{false, true} {
			if err = d.WriteZeroes(c.off, c.length, unmap); !errors.Is(err, blockdev.ErrNotSupported) {
				check("WriteZeroes", c, err)
			}
		}
	}
	for _, c := range []bad{{b, -b, blockdev.ErrRange}, {0, math.MinInt64, blockdev.ErrRange}} {
		_, err := d.Extents(c.off, c.length)
		check("Extents", c, err)
		if err = d.WriteZeroes(c.off, c.length, false); !info.ReadOnly && !errors.Is(err, blockdev.ErrNotSupported) {
			check("WriteZeroes", c, err)
		}
	}
	d.expect(t, before, 0, "refused requests")
	d.expect(t, end, d.size-4*b, "refused requests")
}

func (s *suite) testReadOnly(t *testing.T) {
	d := s.device(t)
	for _, w := range d.windows(64 << 10) {
		before := d.read(t, w[0], w[1])
		refused := func(what string, err error) {
			t.Helper()
			if !errors.Is(err, blockdev.ErrReadOnly) {
				t.Errorf("%s at %d: %v, want %v", what, w[0], err, blockdev.ErrReadOnly)
			}
		}
		_, err := d.WriteAt(patterned(w[1], 1), w[0])
		refused("WriteAt", err)
		refused("WriteZeroes", d.WriteZeroes(w[0], w[1], false))
		refused("WriteZeroes with unmap", d.WriteZeroes(w[0], w[1], true))
		d.expect(t, before, w[0], "refused writes")
	}
}

// testClosed checks that a closed device answers with errors: a file descriptor's number may belong to
// another device by then.
func (s *suite) testClosed(t *testing.T) {
	d := s.device(t)
	d.read(t, 0, d.block)
	d.close()
	failed := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s after Close: no error", what)
		}
	}
	p := make([]byte, d.block)
	_, err := d.ReadAt(p, 0)
	failed("ReadAt", err)
	_, err = d.WriteAt(p, 0)
	failed("WriteAt", err)
	failed("WriteZeroes", d.WriteZeroes(0, d.block, false))
	failed("WriteZeroes with unmap", d.WriteZeroes(0, d.block, true))
	failed("Flush", d.Flush())
	_, err = d.Extents(0, d.block)
	failed("Extents", err)
	d.Info()
	_ = d.Close() // an error or not, but no panic
}

func (s *suite) testReopen(t *testing.T) {
	d := s.device(t)
	windows := d.windows(64 << 10)
	for i, w := range windows {
		d.write(t, patterned(w[1], uint64(i)), w[0])
	}
	hole := d.zero(t, d.block, d.block, true)
	if err := d.Flush(); err != nil {
		t.Fatalf("Flush: %v", err)
	}
	info := d.Info()
	d.close()
	again := wrap(t, s.reopen(t, d.Device))
	if got := again.Info(); got.Size != info.Size || got.BlockSize != info.BlockSize {
		t.Errorf("reopened as %+v, was %+v", got, info)
	}
	for i, w := range windows {
		want := patterned(w[1], uint64(i))
		if hole && w[0] == 0 {
			clear(want[d.block : 2*d.block])
		}
		again.expect(t, want, w[0], "reopened")
		again.checkExtents(t, w[0], w[1])
	}
}
