package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// Reads and writes allocate nothing once the pools are filled.
func TestNoAllocations(t *testing.T) {
	run := func(t *testing.T, b Backend, noRing bool) {
		s := testServer(b, noRing)
		defer s.Close()
		w := join(t, s).enter(false)
		const depth = 8
		var batch []byte
		for i := range depth {
			batch = append(batch, req(cmdRead, 0, uint64(i), uint64(i)*4096, 4096)...)
			batch = append(batch, req(cmdWrite, 0, uint64(i), 1<<20, 4096, make([]byte, 4096))...)
		}
		answer := make([]byte, depth*(2*simpleSize+4096))
		round := func() {
			if _, err := w.Write(batch); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(w.UnixConn, answer); err != nil {
				t.Fatal(err)
			}
		}
		for range 50 {
			round()
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		const rounds = 500
		for range rounds {
			round()
		}
		runtime.ReadMemStats(&after)
		if n := float64(after.Mallocs-before.Mallocs) / (rounds * depth * 2); n > 0.01 {
			t.Errorf("%.2f allocations a request", n)
		}
	}
	eachLoop(t, func(t *testing.T, noRing bool) { run(t, newMemory(8<<20), noRing) })
	t.Run("file", func(t *testing.T) { run(t, newFileBackend(t, 8<<20), false) })
}

// mixed answers inline, through the ring, and on goroutines, as an engine does.
type mixed struct {
	mem  *memory
	file *fileBackend
	n    uint32
	mu   sync.Mutex
}

func (m *mixed) Info() blockdev.Info { return m.file.Info() }
func (m *mixed) Extents(off, length int64) ([]blockdev.Extent, error) {
	return m.file.Extents(off, length)
}

func (m *mixed) Submit(r *blockdev.Request) {
	m.mu.Lock()
	m.n++
	n := m.n
	m.mu.Unlock()
	if r.Op != blockdev.OpRead || r.Ring == nil || n%3 != 0 {
		if n%3 == 1 {
			m.mem.Submit(r)
			return
		}
		r.Detached = true
		go func() { r.Done(r, m.mem.serve(r)) }()
		return
	}
	// The file's bytes are not the memory's: read them for the ring's sake, then answer from memory.
	done := r.Done
	r.Done = func(r *blockdev.Request, err error) {
		r.Done = done
		if err == nil {
			err = m.mem.serve(r)
		}
		done(r, err)
	}
	m.file.Submit(r)
}

// Many requests at once, answered in all three ways and out of order: every reply is complete and its own.
func TestMixedCompletions(t *testing.T) {
	const size, conns, depth, rounds = 4 << 20, 3, 32, 60
	eachLoop(t, func(t *testing.T, noRing bool) {
		m := &mixed{mem: newMemory(size), file: newFileBackend(t, size)}
		for i := 0; i < size; i += 512 {
			binary.BigEndian.PutUint64(m.mem.data[i:], uint64(i))
		}
		pattern := bytes.Clone(m.mem.data)
		s := testServer(m, noRing)
		s.Limits.Socket = 32 << 10 // full again and again
		defer s.Close()
		var wg sync.WaitGroup
		for c := range conns {
			w := join(t, s).enter(false)
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(c), 1))
				for range rounds {
					type want struct {
						off    uint64
						length int
					}
					open := map[uint64]want{}
					var say []byte
					for i := range uint64(depth) {
						off := uint64(rnd.IntN(size/512-256)) * 512
						n := (rnd.IntN(256) + 1) * 512
						if i%4 == 3 {
							data := make([]byte, n) // what is there already
							copy(data, pattern[off:])
							say = append(say, req(cmdWrite, 0, i, off, uint32(n), data)...)
							n = 0
						} else {
							say = append(say, req(cmdRead, 0, i, off, uint32(n))...)
						}
						open[i] = want{off, n}
					}
					go w.Write(say)
					for range depth {
						code, cookie := w.simple()
						q, ok := open[cookie]
						delete(open, cookie)
						if code != 0 || !ok {
							t.Errorf("error %d of request %d, open: %v", code, cookie, ok)
							return
						}
						data := w.hear(q.length)
						for i := 0; i < q.length; i += 512 {
							if got := binary.BigEndian.Uint64(data[i:]); got != q.off+uint64(i) {
								t.Errorf("read at %d+%d brought %d", q.off, i, got)
								return
							}
						}
					}
				}
			})
		}
		wg.Wait()
	})
}

// BenchmarkDetached is the latency of a request that goes on on a goroutine, as a flush does, while a
// second connection idles in its system call.
func BenchmarkDetached(b *testing.B) {
	for _, l := range loops {
		for _, procs := range []int{1, 2, 4, 8} {
			for _, conns := range []int{1, 2, 4} {
				b.Run(fmt.Sprintf("%s/procs=%d/conns=%d", l.name, procs, conns), func(b *testing.B) {
					defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
					m := newMemory(1 << 20)
					m.detached = true
					s := testServer(m, l.noRing)
					defer s.Close()
					w := join(b, s).enter(false)
					for range conns - 1 {
						join(b, s).enter(false)
					}
					fd := blockingFd(b, w)
					say, answer := req(cmdFlush, 0, 1, 0, 0), make([]byte, simpleSize)
					var worst time.Duration
					for b.Loop() {
						at := time.Now()
						unix.Write(fd, say)
						if _, err := unix.Read(fd, answer); err != nil {
							b.Fatal(err)
						}
						worst = max(worst, time.Since(at))
					}
					b.ReportMetric(float64(worst.Microseconds()), "worst-us")
				})
			}
		}
	}
}

// blockingFd takes a connection's descriptor from Go's netpoller, so that waiting for a reply is no
// business of the scheduler under test.
func blockingFd(b *testing.B, w wire) int {
	f, err := w.File()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	w.Close()
	fd := int(f.Fd())
	unix.SetNonblock(fd, false)
	return fd
}
