package nbd

import (
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

func TestLatencyBuckets(t *testing.T) {
	for took, bucket := range map[time.Duration]int{
		-1: 0, 0: 0, 999: 0, time.Microsecond: 1, 1999: 1, 2 * time.Microsecond: 2, 3 * time.Microsecond: 2, 4 * time.Microsecond: 3,
		time.Millisecond: 10, 1024 * time.Microsecond: 11, time.Second: 20, 10 * time.Minute: 25, 1 << 62: 25,
	} {
		var l latencies
		l.add(kindRead, took)
		if l[kindRead].Counts[bucket] != 1 {
			t.Errorf("%v: %v, want bucket %d", took, l[kindRead].Counts, bucket)
		}
	}
}

func sum(l Latency) (n uint64) {
	for _, c := range l.Counts {
		n += c
	}
	return n
}

// Every request is counted once, by its kind, and for as long as the backend took; also those of connections that
// have ended.
func TestLatencies(t *testing.T) {
	for _, noRing := range []bool{false, true} {
		m := newMemory(1 << 20)
		m.detached = true
		s := testServer(m, noRing)
		sock := start(t, s)
		for range 2 {
			c, err := Dial(t.Context(), "nbd+unix:///?socket="+sock, Options{})
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 4096)
			for range 5 {
				if _, err := c.ReadAt(p, 0); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 {
				if _, err := c.WriteAt(p, 0); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.WriteZeroes(0, 4096, true); err != nil {
				t.Fatal(err)
			}
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Extents(0, 4096); err != nil { // has no kind
				t.Fatal(err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
		until(t, "the connections end", func() bool { return s.Conns() == 0 })
		l := s.Latencies()
		if sum(l.Read) != 10 || sum(l.Write) != 8 || sum(l.Flush) != 2 {
			t.Errorf("no ring %v: %d reads, %d writes, %d flushes", noRing, sum(l.Read), sum(l.Write), sum(l.Flush))
		}

		m.hold = make(chan struct{})
		c, err := Dial(t.Context(), "nbd+unix:///?socket="+sock, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		const held = 20 * time.Millisecond
		began, wrote := time.Now(), make(chan error, 1)
		go func() {
			_, err := c.WriteAt(make([]byte, blockdev.SectorSize), 0)
			wrote <- err
		}()
		until(t, "it is with the backend", func() bool { return m.live.Load() > 0 })
		time.Sleep(held)
		close(m.hold)
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		until(t, "it is counted", func() bool { return sum(s.Latencies().Write) == 9 })
		took := time.Since(began)
		if d := time.Duration(s.Latencies().Write.Micros-l.Write.Micros) * time.Microsecond; d < held || d > took {
			t.Errorf("a write that was held for %v counts as %v, and all that took %v", held, d, took)
		}
	}
}

// What a request pays at a queue depth of one: two readings of the clock and a count.
func BenchmarkLatency(b *testing.B) {
	var l latencies
	for b.Loop() {
		arrived := now()
		l.add(kindRead, now()-arrived)
	}
}
