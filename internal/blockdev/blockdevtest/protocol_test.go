package blockdevtest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// The protocol is a clone's: data, flush, flag, flush. The devices must find what goes wrong without the
// first flush, and nothing wrong with it.
const (
	dataAt = 4096
	flagAt = 0
)

func saveChunk(d blockdev.Device, flushData bool) error {
	if _, err := d.WriteAt(bytes.Repeat([]byte("d"), 4096), dataAt); err != nil {
		return err
	}
	if flushData {
		if err := d.Flush(); err != nil {
			return err
		}
	}
	if _, err := d.WriteAt(bytes.Repeat([]byte("f"), 512), flagAt); err != nil {
		return err
	}
	return d.Flush()
}

// flagWithoutData says whether the flag is there without its data.
func flagWithoutData(t *testing.T, d blockdev.Device) bool {
	t.Helper()
	return mustRead(t, d, flagAt, 1<<9)[0] == 'f' &&
		!bytes.Equal(mustRead(t, d, dataAt, 4096), bytes.Repeat([]byte("d"), 4096))
}

func TestPowerCutFindsMissingFlush(t *testing.T) {
	for _, flushData := range []bool{true, false} {
		c := newCrash(64)
		bad := 0
		c.OnOp = func(int, string, int64, int64) {
			for m := range c.States(300) {
				if flagWithoutData(t, m) {
					bad++
				}
			}
		}
		if err := saveChunk(c, flushData); err != nil {
			t.Fatal(err)
		}
		if (bad == 0) != flushData {
			t.Errorf("flush %v: %d states with a flag and no data", flushData, bad)
		}
		if c.Ops() != 3+c.Flushes()-1 {
			t.Errorf("%d operations, %d flushes", c.Ops(), c.Flushes())
		}
	}
}

func TestTrace(t *testing.T) {
	trace := new(Trace)
	regions := []Region{{"header", 0, 512}, {"table", 512, 1024}}
	store := NewCrash(NewMemory("store", 1<<20, 512), CrashOptions{Trace: trace, Regions: regions})
	origin := NewCrash(NewMemory("origin", 1<<20, 512), CrashOptions{Trace: trace})
	mustWrite(t, store, filled('a', 512), 0)
	mustRead(t, store, 0, 512)
	mustWrite(t, store, filled('a', 1024), 1024)
	mustWrite(t, store, nil, 0)
	if _, err := store.WriteAt(filled('a', 512), 1); !errors.Is(err, blockdev.ErrAlign) {
		t.Errorf("unaligned: %v", err)
	}
	mustFlush(t, store)
	trace.Mark("# the origin")
	for _, unmap := range []bool{false, true} {
		if err := origin.WriteZeroes(4096, 8192, unmap); err != nil {
			t.Fatal(err)
		}
	}
	mustWrite(t, store, filled('a', 512), 1536)
	mustFlush(t, origin)
	want := strings.TrimLeft(`
write header+0 512
write table+512 1024
flush store
# the origin
zero origin+4096 8192
unmap origin+4096 8192
write store+1536 512
flush origin
`, "\n")
	if got := trace.String(); got != want {
		t.Errorf("trace\n%swant\n%s", got, want)
	}
	trace.Reset()
	if got := trace.Lines(); len(got) != 0 {
		t.Errorf("after Reset %q", got)
	}
}

// TestHooks checks the numbers hooks are given, and that each flush boundary can be cut.
func TestHooks(t *testing.T) {
	c := newCrash(64)
	var ops []string
	var flushes []int
	c.OnOp = func(n int, op string, off, length int64) {
		if n != len(ops)+1 {
			t.Errorf("operation %d is called number %d", len(ops)+1, n)
		}
		ops = append(ops, op)
	}
	var before []string
	c.OnFlush = func(n int) {
		flushes = append(flushes, n)
		before = append(before, strings.Join(allStates(t, c, 1, 10), " "))
	}
	for _, b := range "abc" {
		mustWrite(t, c, filled(byte(b), 512), 0)
		mustFlush(t, c)
	}
	if err := c.WriteZeroes(0, 512, false); err != nil {
		t.Fatal(err)
	}
	if want := []string{"write", "flush", "write", "flush", "write", "flush", "zero"}; !slices.Equal(ops, want) {
		t.Errorf("operations %q, want %q", ops, want)
	}
	if !slices.Equal(flushes, []int{1, 2, 3}) {
		t.Errorf("flushes %d", flushes)
	}
	if want := []string{". a", "a b", "b c"}; !slices.Equal(before, want) {
		t.Errorf("states before the flushes %q, want %q", before, want)
	}
}

// BenchmarkCrashState measures a state of a 1 MiB device with 300 writes of 4 KiB in its log, for one
// state a moment (the log has changed since the last state) and for many.
func BenchmarkCrashState(b *testing.B) {
	for _, many := range []bool{false, true} {
		name := map[bool]string{false: "new moment", true: "same moment"}[many]
		b.Run(name, func(b *testing.B) {
			c := newCrash(2048)
			mustWrite(b, c, patterned(1<<20, 1), 0)
			mustFlush(b, c)
			rng := rand.New(rand.NewPCG(1, 1))
			p := patterned(4096, 2)
			for range 300 {
				mustWrite(b, c, p, rng.Int64N(256)*4096)
			}
			b.ReportAllocs()
			for b.Loop() {
				if !many {
					c.disk.moment = nil
				}
				c.PowerCut(rng)
			}
		})
	}
}
