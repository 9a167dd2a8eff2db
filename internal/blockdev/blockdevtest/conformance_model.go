package blockdevtest

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// testWriteZeroes checks each way of zeroing, and that a device that can't has changed nothing.
func (s *suite) testWriteZeroes(t *testing.T) {
	d := s.device(t)
	b := d.block
	for _, unmap := range []bool{false, true} {
		supported := true
		for _, w := range d.windows(256 << 10) {
			model := patterned(w[1], uint64(w[0]))
			d.write(t, model, w[0])
			blocks := w[1] / b
			for _, r := range [][2]int64{{1, 1}, {3, 2}, {blocks / 2, blocks/2 - 1}, {0, blocks}} {
				off, length := r[0]*b, r[1]*b
				if d.zero(t, w[0]+off, length, unmap) {
					clear(model[off : off+length])
				} else {
					supported = false
				}
				d.expect(t, model, w[0], "WriteZeroes")
				d.checkExtents(t, w[0], w[1])
			}
			p := patterned(b, 5)
			d.write(t, p, w[0]+b)
			copy(model[b:], p)
			d.expect(t, model, w[0], "a write into zeros")
			d.checkExtents(t, w[0], w[1])
		}
		if !supported {
			t.Logf("unmap %v: not supported", unmap)
		}
	}
}

// checkExtents checks that the extents of a range cover it in order and without gaps, and that what they
// call zero reads as zeros, at the ends of each and in the middle.
func (d *device) checkExtents(t fatal, off, length int64) {
	t.Helper()
	extents, err := d.Extents(off, length)
	if err != nil {
		t.Fatalf("Extents %d length %d: %v", off, length, err)
	}
	at := off
	for _, e := range extents {
		if e.Offset != at || e.Length <= 0 {
			t.Fatalf("Extents %d length %d: %+v where one at %d belongs", off, length, e, at)
		}
		at += e.Length
		if !e.Zero {
			continue
		}
		const probe = 64 << 10
		from, to := e.Offset&^(d.block-1), (at+d.block-1)&^(d.block-1) // reads are in whole blocks
		for _, p := range []int64{from, from + (to-from)/2&^(d.block-1), max(from, to-probe)} {
			first, end := max(p, e.Offset), min(p+probe, at)
			data := d.read(t, p, min(probe, to-p))[first-p : end-p]
			if i := difference(data, make([]byte, len(data))); i >= 0 {
				t.Fatalf("extent %+v: byte %d is %#x", e, first+int64(i), data[i])
			}
		}
	}
	if at != off+length {
		t.Fatalf("Extents %d length %d: end at %d", off, length, at)
	}
}

// testModel does random operations on the device and on plain bytes.
func (s *suite) testModel(t *testing.T) {
	d := s.device(t)
	windows := d.windows(32 << 10)
	if len(windows) == 1 {
		windows[0][1] = min(windows[0][1], 96<<10)
	}
	fresh := make([][]byte, len(windows))
	for i, w := range windows {
		fresh[i] = patterned(w[1], uint64(i))
	}
	rapid.Check(t, func(t *rapid.T) {
		models := make([][]byte, len(windows))
		for i, w := range windows { // each check starts from the same contents
			models[i] = bytes.Clone(fresh[i])
			d.write(t, models[i], w[0])
		}
		stamp := uint64(100)
		// place draws a part of a window: where it is on the device, and its bytes in the model.
		place := func(t *rapid.T) (int64, []byte) {
			i := rapid.IntRange(0, len(windows)-1).Draw(t, "window")
			blocks := windows[i][1] / d.block
			from := rapid.Int64Range(0, blocks).Draw(t, "block")
			n := min(blocks-from, 1<<rapid.IntRange(0, 6).Draw(t, "log2 of blocks"))
			return windows[i][0] + from*d.block, models[i][from*d.block : (from+n)*d.block]
		}
		zero := func(unmap bool) func(*rapid.T) {
			return func(t *rapid.T) {
				off, model := place(t)
				if d.zero(t, off, int64(len(model)), unmap) {
					clear(model)
				}
				d.expect(t, model, off, "WriteZeroes")
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				off, model := place(t)
				stamp++
				pattern(model, stamp)
				d.write(t, bytes.Clone(model), off)
			},
			"write zeros": func(t *rapid.T) {
				off, model := place(t)
				clear(model)
				d.write(t, bytes.Clone(model), off)
			},
			"zero":  zero(false),
			"unmap": zero(true),
			"read": func(t *rapid.T) {
				off, model := place(t)
				d.expect(t, model, off, "read")
			},
			"extents": func(t *rapid.T) {
				off, model := place(t)
				d.checkExtents(t, off, int64(len(model)))
			},
			"flush": func(t *rapid.T) {
				if err := d.Flush(); err != nil {
					t.Fatalf("Flush: %v", err)
				}
			},
		})
		for i, w := range windows {
			d.expect(t, models[i], w[0], "in the end")
		}
	})
}
