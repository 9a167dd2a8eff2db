package nbd

import (
	"math/bits"
	"time"
)

// LatencyBuckets is how many buckets a Latency has: bucket i counts what took less than 2^i microseconds and no less
// than half of it; the last one also all that took longer.
const LatencyBuckets = 26

// Latency counts requests by how long they took, from the arrival of their header to the hand-over of their reply to
// the kernel.
type Latency struct {
	Counts [LatencyBuckets]uint64
	Micros uint64 // the sum
}

// Latencies are those of a server, or of a connection, by kind.
type Latencies struct {
	Read, Write, Flush Latency // writes include trims and write-zeroes
}

// The kinds of requests whose time counts.
const (
	kindNone = iota // refused, or a block status
	kindRead
	kindWrite
	kindFlush
	kinds
)

// latencies are a connection's, by kind. Its mutex guards them, which is held anyway when replies have left. The
// clock is read once when bytes arrive and once when replies leave, for all of them: a queue of requests costs two
// readings.
type latencies [kinds]Latency

// began is when the clock of this process began.
var began = time.Now()

// now is the time since then; monotonic, and cheaper than time.Now.
func now() time.Duration { return time.Since(began) }

func (l *latencies) add(kind uint8, took time.Duration) {
	micros := uint64(max(took, 0) / time.Microsecond)
	h := &l[kind]
	h.Counts[min(bits.Len64(micros), LatencyBuckets-1)]++
	h.Micros += micros
}

func (l *latencies) join(other *latencies) {
	for kind := range l {
		for i, n := range other[kind].Counts {
			l[kind].Counts[i] += n
		}
		l[kind].Micros += other[kind].Micros
	}
}

// Latencies returns how long requests took since the server was made, of connections that have ended too.
func (s *Server) Latencies() Latencies {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.past
	for c := range s.conns {
		c.mu.Lock()
		all.join(&c.latencies)
		c.mu.Unlock()
	}
	return Latencies{Read: all[kindRead], Write: all[kindWrite], Flush: all[kindFlush]}
}
