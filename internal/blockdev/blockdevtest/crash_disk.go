package blockdevtest

import (
	"slices"
	"sync"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// write is a write or write-zeroes on its way to being durable. Its data never change.
type write struct {
	off, length int64 // bytes
	data        []byte
	zero, unmap bool
	by          *Crash
	seq         int64 // place in the order of landing
}

func (w *write) kind() string {
	switch {
	case w.unmap:
		return "unmap"
	case w.zero:
		return "zero"
	}
	return "write"
}

// apply makes the part [off, off+length) of the write the contents of im.
func (w *write) apply(im *image, off, length int64) {
	if w.zero {
		im.zero(off, length, w.unmap)
		return
	}
	im.put(w.data[off-w.off:off-w.off+length], off)
}

// crashDisk is what all openings of a Crash device share.
type crashDisk struct {
	id      uint64 // the order of locking
	info    blockdev.Info
	unit    int64 // bytes that don't tear
	trace   *Trace
	regions []Region

	mu      sync.RWMutex
	now     *image   // what reads see
	durable *image   // what nothing can take away
	log     []*write // landed and not durable, in the order of landing
	flying  []*write // issued and not landed, in the order of issue
	landed  int64    // how many writes ever landed
	moment  *Moment  // of the present state, nil if none was asked for
}

// issue, land and settle move a write through the model. They are called with mu held.
func (d *crashDisk) issue(w *write) {
	d.flying = append(d.flying, w)
	d.moment = nil
	d.trace.add(w.kind() + " " + d.place(w.off, w.length))
}

func (d *crashDisk) land(w *write) {
	i := slices.Index(d.flying, w)
	d.flying = slices.Delete(d.flying, i, i+1)
	d.landed++
	w.seq = d.landed
	w.apply(d.now, w.off, w.length)
	d.log = append(d.log, w)
	d.moment = nil
}

// settle makes durable what landed as number mark or earlier.
func (d *crashDisk) settle(mark int64) {
	n := 0
	for ; n < len(d.log) && d.log[n].seq <= mark; n++ {
		d.log[n].apply(d.durable, d.log[n].off, d.log[n].length)
	}
	if n > 0 {
		d.log = slices.Delete(d.log, 0, n)
		d.moment = nil
	}
}

// Late holds the writes that were in flight when their process died.
type Late struct {
	disk   *crashDisk
	writes []*write
}

// Kill is the death of the process that has c open: everything that returned stays, every later
// operation of c fails with ErrKilled, and so do those in flight; their writes can land later. Call it
// from a hook, or while another goroutine is held in one, to have some.
func (c *Crash) Kill() *Late {
	d := c.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	late := &Late{disk: d}
	if !c.killed {
		c.killed = true
		for _, w := range d.flying {
			if w.by == c {
				late.writes = append(late.writes, w)
			}
		}
	}
	return late
}

// Len returns how many writes there still are.
func (l *Late) Len() int {
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	return len(l.writes)
}

// Land lets write i, in the order of issue, land now. Those behind it move up.
func (l *Late) Land(i int) {
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	l.disk.land(l.writes[i])
	l.writes = slices.Delete(l.writes, i, i+1)
}

// LandAll lets all that are left land now, in the order of issue.
func (l *Late) LandAll() {
	for l.Len() > 0 {
		l.Land(0)
	}
}

// Drop says that those left will never land.
func (l *Late) Drop() {
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	l.disk.flying = slices.DeleteFunc(l.disk.flying, func(w *write) bool { return slices.Contains(l.writes, w) })
	l.writes, l.disk.moment = nil, nil
}
