// Package records writes numbered, checksummed records to a disk, reads them back while it does, and says afterwards
// whether anything acknowledged was lost. The same code runs in the guest, which writes and verifies, and outside,
// which verifies what came to rest.
package records

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// Size is the length of a record in bytes, and of its slot on the disk.
const Size = 4096

const (
	magic     = 0x76637265636f7264 // "vcrecord"
	headerLen = 8 + 8 + 8          // magic, slot, sequence; then random bytes; CRC-32C last
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Fill makes buf (Size bytes) the record with this sequence number for this slot.
func Fill(buf []byte, slot int, seq uint64) {
	binary.LittleEndian.PutUint64(buf, magic)
	binary.LittleEndian.PutUint64(buf[8:], uint64(slot))
	binary.LittleEndian.PutUint64(buf[16:], seq)
	r := rand.NewPCG(uint64(slot), seq)
	for i := headerLen; i < Size-8; i += 8 {
		binary.LittleEndian.PutUint64(buf[i:], r.Uint64())
	}
	binary.LittleEndian.PutUint64(buf[Size-8:], uint64(crc32.Checksum(buf[:Size-8], castagnoli)))
}

// Check returns the sequence number of the record in buf, or an error if it is none for this slot.
func Check(buf []byte, slot int) (uint64, error) {
	switch {
	case binary.LittleEndian.Uint64(buf) != magic:
		return 0, errors.New("no record")
	case binary.LittleEndian.Uint64(buf[Size-8:]) != uint64(crc32.Checksum(buf[:Size-8], castagnoli)):
		return 0, errors.New("checksum is wrong")
	case binary.LittleEndian.Uint64(buf[8:]) != uint64(slot):
		return 0, fmt.Errorf("record of slot %d", binary.LittleEndian.Uint64(buf[8:]))
	}
	return binary.LittleEndian.Uint64(buf[16:]), nil
}

// Slot tells what was written to one slot: sequence numbers, 0 for never.
type Slot struct {
	Issued uint64 `json:"i"` // the last write begun
	Acked  uint64 `json:"a"` // the last write that returned without an error
}

// Log is what a Writer did.
type Log struct {
	Slots   []Slot `json:"slots"`
	Flushes uint64 `json:"flushes"`
	Base    bool   `json:"base,omitempty"` // every slot had record 0 before
}

// Base is the log of a disk on which WriteBase was all.
func Base(slots int) Log { return Log{Slots: make([]Slot, slots), Base: true} }

// WriteBase writes record 0 of every slot: what a clone's master holds, so that a slot that was never written, or that
// is wrongly taken for one, is known for what it is.
func WriteBase(w io.Writer, slots int) error {
	buf := make([]byte, Size)
	for i := range slots {
		Fill(buf, i, 0)
		if _, err := w.Write(buf); err != nil {
			return fmt.Errorf("slot %d: %w", i, err)
		}
	}
	return nil
}

// Disk is what a Writer writes to.
type Disk interface {
	io.WriterAt
	Sync() error
}

// Writer writes records to random slots from several goroutines until it is stopped.
type Writer struct {
	Disk       Disk
	Slots      int
	Workers    int
	FlushEvery int                   // writes of one worker between its flushes
	Alloc      func(size int) []byte // buffers, for direct I/O

	// For a writer that may be killed, and its log with it: Flushed is told after each flush of a worker how far that
	// got, and what it was told together with Seed says what must be there (Promised).
	Seed    uint64 // of what is written where; 0 for any
	Flushed func(worker int, seq uint64)

	// Readers read the disk, each in its own way: after each write a worker reads some of its slots back through one of
	// them, and ends with an error where one does not hold exactly what it last wrote there. None for no such reads.
	Readers []io.ReaderAt
	Base    bool // every slot has record 0 when the writer begins

	acked, read atomic.Uint64
}

// Acked is how many writes have been acknowledged so far.
func (w *Writer) Acked() uint64 { return w.acked.Load() }

// Read is how many records have been read back so far, and were right.
func (w *Writer) Read() uint64 { return w.read.Load() }

// Run writes until stop is closed or a write fails, and says what it did either way. Each worker has every
// Workers-th slot to itself, so that one slot never has two writes in flight.
func (w *Writer) Run(stop <-chan struct{}) (Log, error) {
	log := Log{Slots: make([]Slot, w.Slots), Base: w.Base}
	var flushes atomic.Uint64
	errs := make([]error, w.Workers)
	var wg sync.WaitGroup
	for id := range w.Workers {
		wg.Go(func() { errs[id] = w.work(id, log.Slots, &flushes, stop) })
	}
	wg.Wait()
	log.Flushes = flushes.Load()
	return log, errors.Join(errs...)
}

// GuestWriter is the writer that runs in the lab's guests, without its disk and its buffers.
func GuestWriter(slots int, seed uint64) *Writer {
	return &Writer{Slots: slots, Workers: 4, FlushEvery: 16, Seed: seed}
}

// What a guest says on its console, a line each.
const (
	Told  = "flushed %s %d %d."                       // what Flushed is told: writer, worker, sequence number
	Right = "checker %s: right: %d writes, %d reads." // at its end: writer, writes, records read back
	Wrong = "checker %s: WRONG: %s"                   // at its end: writer, error
)

// most is how many records a write has at most.
const most = 8

// places makes the function that says where a worker's next write goes, and how many records it has.
func (w *Writer) places(id int, seed uint64) func() (first, n int) {
	r := rand.New(rand.NewPCG(seed, uint64(id)))
	own := w.Slots / w.Workers // slots [id*own, (id+1)*own)
	return func() (first, n int) {
		n = 1 + r.IntN(most)
		return id*own + r.IntN(own-n+1), n
	}
}

// Promised is what must be on the disk of a writer that was killed, by what Flushed was last told of each worker. Its
// last writes are not known, so a slot may hold any later record.
func (w *Writer) Promised(flushed []uint64) Log {
	log := Log{Slots: make([]Slot, w.Slots), Base: w.Base}
	for i := range log.Slots {
		log.Slots[i].Issued = math.MaxUint64
	}
	for id := range w.Workers {
		next := w.places(id, w.Seed)
		for seq := uint64(1); seq <= flushed[id]; seq++ {
			first, n := next()
			for i := range n {
				log.Slots[first+i] = Slot{Issued: math.MaxUint64, Acked: seq}
			}
		}
		log.Flushes += flushed[id] / uint64(w.FlushEvery)
	}
	return log
}

func (w *Writer) work(id int, slots []Slot, flushes *atomic.Uint64, stop <-chan struct{}) error {
	buf := w.Alloc(most * Size)
	seed := w.Seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	next := w.places(id, seed)
	look := w.places(id, ^seed)
	for seq := uint64(1); ; seq++ {
		select {
		case <-stop:
			return nil
		default:
		}
		first, n := next()
		for i := range n {
			Fill(buf[i*Size:(i+1)*Size], first+i, seq)
			slots[first+i].Issued = seq
		}
		if _, err := w.Disk.WriteAt(buf[:n*Size], int64(first)*Size); err != nil {
			return fmt.Errorf("write %d to slot %d: %w", seq, first, err)
		}
		for i := range n {
			slots[first+i].Acked = seq
		}
		w.acked.Add(1)
		if len(w.Readers) > 0 {
			first, n := look()
			if err := w.readBack(w.Readers[seq%uint64(len(w.Readers))], buf[:n*Size], slots, first); err != nil {
				return fmt.Errorf("after write %d: %w", seq, err)
			}
		}
		if seq%uint64(w.FlushEvery) == 0 {
			if err := w.Disk.Sync(); err != nil {
				return fmt.Errorf("flush after write %d: %w", seq, err)
			}
			flushes.Add(1)
			if w.Flushed != nil {
				w.Flushed(id, seq)
			}
		}
	}
}

// readBack reads slots that nobody else writes: they hold exactly what the worker last wrote there.
func (w *Writer) readBack(r io.ReaderAt, buf []byte, slots []Slot, first int) error {
	if _, err := r.ReadAt(buf, int64(first)*Size); err != nil {
		return fmt.Errorf("read back slot %d: %w", first, err)
	}
	for i := range len(buf) / Size {
		want := slots[first+i].Acked
		if want == 0 && !w.Base {
			continue
		}
		seq, err := Check(buf[i*Size:(i+1)*Size], first+i)
		if err == nil && seq != want {
			err = fmt.Errorf("holds record %d, but %d is what was written", seq, want)
		}
		if err != nil {
			return fmt.Errorf("read back slot %d: %w", first+i, err)
		}
		w.read.Add(1)
	}
	return nil
}

// Verify reads every slot that was written: each must hold a whole record, no older than the last one
// acknowledged and no newer than the last one begun. With a base every slot is read, and one that was never written
// must hold record 0. It returns how many slots it looked at.
func (l Log) Verify(r io.ReaderAt, alloc func(size int) []byte) (int, error) {
	buf := alloc(Size)
	var checked int
	var errs []error
	for i, s := range l.Slots {
		if s.Acked == 0 && !l.Base {
			continue
		}
		checked++
		if _, err := r.ReadAt(buf, int64(i)*Size); err != nil {
			return checked, fmt.Errorf("read slot %d: %w", i, err)
		}
		switch seq, err := Check(buf, i); {
		case err != nil:
			errs = append(errs, fmt.Errorf("slot %d: %w", i, err))
		case seq < s.Acked:
			errs = append(errs, fmt.Errorf("slot %d holds record %d, but %d was acknowledged: lost", i, seq, s.Acked))
		case seq > s.Issued:
			errs = append(errs, fmt.Errorf("slot %d holds record %d, but %d was the last written", i, seq, s.Issued))
		}
		if len(errs) == 10 {
			break // enough to see
		}
	}
	return checked, errors.Join(errs...)
}
