package engine

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// flight is one request on the fast path: the pieces of I/O it waits for on its ring, what it holds, and
// the flags to set when all have landed.
type flight struct {
	v       *Volume
	r       *blockdev.Request
	pending atomic.Int32 // pieces in the air, and one for the submitter until it is done
	failed  atomic.Pointer[error]

	inflight *inflight
	held     *span
	table    *table // flags of chunks first..first+count are set at the end, if not nil
	first    int64
	count    int64
}

type piece struct {
	blockdev.IO
	f    *flight
	file *blockdev.File
}

var (
	flights = sync.Pool{New: func() any { return new(flight) }}
	pieces  = sync.Pool{New: func() any { return new(piece) }}
)

func newFlight(v *Volume, r *blockdev.Request) *flight {
	f := flights.Get().(*flight)
	f.v, f.r = v, r
	f.pending.Store(1)
	return f
}

func (f *flight) release() {
	f.v, f.r, f.inflight, f.held, f.table = nil, nil, nil, nil, nil
	f.failed.Store(nil)
	flights.Put(f)
}

// submit puts one piece on the ring.
func (f *flight) submit(file *blockdev.File, buf []byte, off int64) {
	p := pieces.Get().(*piece)
	if p.Done == nil {
		p.Done = func(_ *blockdev.IO, result int32) { p.done(result) }
	}
	p.f, p.file = f, file
	p.Fd, p.Write, p.Buf, p.Off = file.Fd(), f.r.Op == blockdev.OpWrite, buf, off
	f.pending.Add(1)
	f.r.Ring.Submit(&p.IO)
}

func (p *piece) done(result int32) {
	f, file, buf, off := p.f, p.file, p.Buf, p.Off
	p.f, p.file, p.Buf = nil, nil, nil
	pieces.Put(p)
	switch {
	case int(result) == len(buf):
		f.landed(nil)
	case result == -int32(unix.EAGAIN) || result == -int32(unix.EINTR) || result == -int32(unix.ECANCELED) || result > 0:
		// Short, interrupted, or the kernel found nobody to do it: the rest is done by the blocking way, which knows what to do.
		rest := buf[max(result, 0):]
		at := off + int64(max(result, 0))
		f.r.Detached = true
		go func() {
			var err error
			if f.r.Op == blockdev.OpWrite {
				_, err = file.WriteAt(rest, at)
			} else {
				_, err = file.ReadAt(rest, at)
			}
			f.landed(err)
		}()
	case result == 0:
		f.landed(fmt.Errorf("%v %s at %d: the device ends before its size: %w", f.r.Op, file.Info().Name, off, unix.EIO))
	default:
		f.landed(fmt.Errorf("%v %s at %d: %w", f.r.Op, file.Info().Name, off, unix.Errno(-result)))
	}
}

// landed counts one piece down; the last one ends the request.
func (f *flight) landed(err error) {
	if err != nil {
		failure := err // of its own: only a failure costs memory
		f.failed.CompareAndSwap(nil, &failure)
	}
	if f.pending.Add(-1) > 0 {
		return
	}
	err = nil
	if failed := f.failed.Load(); failed != nil {
		err = *failed
	}
	if err == nil && f.table != nil {
		f.table.set(f.first, f.count)
	}
	if f.held != nil {
		f.inflight.unlock(f.held)
	}
	v, r := f.v, f.r
	f.release()
	v.finish(r, err)
}
