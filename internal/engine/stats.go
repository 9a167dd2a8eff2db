package engine

import (
	"sync/atomic"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// counter counts events and bytes.
type counter struct{ n, bytes atomic.Uint64 }

func (c *counter) add(bytes int) {
	c.n.Add(1)
	c.bytes.Add(uint64(bytes))
}

// stats are counted since the volume was opened.
type stats struct {
	ops      [blockdev.OpWriteZeroes + 1]counter
	copied   counter // because of guest writes
	hydrated counter
	errors   atomic.Uint64
}

// Stats are the volume's counters: requests and bytes since it was opened.
type Stats struct {
	Reads, Writes, Flushes, Trims, Zeroes uint64
	ReadBytes, WriteBytes                 uint64
	Copied                                uint64 // bytes from the master because of guest writes
	Hydrated                              uint64 // bytes put in place by hydration
	Commits                               uint64
	Errors                                uint64
}

// Stats returns the counters.
func (v *Volume) Stats() Stats {
	s := &v.stats
	return Stats{
		Reads: s.ops[blockdev.OpRead].n.Load(), ReadBytes: s.ops[blockdev.OpRead].bytes.Load(),
		Writes: s.ops[blockdev.OpWrite].n.Load(), WriteBytes: s.ops[blockdev.OpWrite].bytes.Load(),
		Flushes: s.ops[blockdev.OpFlush].n.Load(), Trims: s.ops[blockdev.OpTrim].n.Load(),
		Zeroes: s.ops[blockdev.OpWriteZeroes].n.Load(),
		Copied: s.copied.bytes.Load(), Hydrated: s.hydrated.bytes.Load(),
		Commits: v.commit.rounds.Load(), Errors: s.errors.Load(),
	}
}

// guestOps is how many requests the guest made so far.
func (s *stats) guestOps() (n uint64) {
	for i := range s.ops {
		n += s.ops[i].n.Load()
	}
	return n
}
