package engine

import (
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// traced is a volume over a device that tells what is done to it.
func traced(t *testing.T, size int64, master blockdev.Device, change ...func(*Options)) (*Volume, *blockdevtest.Trace) {
	t.Helper()
	m := memoryStore(t, size, 4096, sector, master != nil)
	l, err := cowfmt.NewLayout(cowfmt.RoleClone, size, 4096)
	check(t, err)
	trace := new(blockdevtest.Trace)
	dev := blockdevtest.NewCrash(m, blockdevtest.CrashOptions{Trace: trace, Regions: []blockdevtest.Region{
		{Name: "header0", Off: cowfmt.HeaderOffsets[0], Length: cowfmt.HeaderSize},
		{Name: "header1", Off: cowfmt.HeaderOffsets[1], Length: cowfmt.HeaderSize},
		{Name: "table", Off: l.Table[0], Length: l.Table[1] - l.Table[0]},
		{Name: "data", Off: l.Data, Length: m.Info().Size - l.Data},
	}})
	v := mustOpen(t, dev, master, uuid.New(), "", change...)
	trace.Reset()
	return v, trace
}

const (
	headerUpdate = "write header0+0 65536\nflush store\nwrite header1+0 65536\nflush store\n"
	tableFlags   = "write table+0 4096\nflush store\n"
)

// What the engine writes and flushes, and in what order.
func TestGoldenTrace(t *testing.T) {
	v, trace := traced(t, 40<<10, memoryMaster(40<<10, true, 0, 40<<10))
	expect := func(what, want string) {
		t.Helper()
		if got := trace.String(); got != want {
			t.Errorf("%s did\n%swant\n%s", what, got, want)
		}
		trace.Reset()
	}
	do := func(r *blockdev.Request) {
		t.Helper()
		check(t, request(v, r))
	}
	do(&blockdev.Request{Op: blockdev.OpFlush})
	expect("flush with nothing dirty", "flush store\n")
	do(&blockdev.Request{Op: blockdev.OpWrite, Buf: filled(0, 4096, 1)})
	do(&blockdev.Request{Op: blockdev.OpFlush})
	expect("the first write and flush of all", "write data+0 4096\nflush store\nwrite table+0 1048576\nflush store\n"+headerUpdate)
	do(&blockdev.Request{Op: blockdev.OpWrite, Buf: filled(4096, 512, 1), Off: 4096})
	do(&blockdev.Request{Op: blockdev.OpFlush})
	expect("a partial first write and flush", "write data+4096 4096\nflush store\n"+tableFlags)
	do(&blockdev.Request{Op: blockdev.OpWrite, Buf: filled(1024, 512, 1), Off: 1024})
	do(&blockdev.Request{Op: blockdev.OpFlush})
	expect("a rewrite and flush", "write data+1024 512\nflush store\n")
	do(&blockdev.Request{Op: blockdev.OpWrite, Buf: filled(0, 1024, 1), FUA: true})
	expect("a rewrite with FUA", "write data+0 1024\nflush store\n")
	do(&blockdev.Request{Op: blockdev.OpWrite, Buf: filled(8192, 8192, 1), Off: 8192, FUA: true})
	expect("a first write with FUA", "write data+8192 8192\nflush store\n"+tableFlags)
	do(&blockdev.Request{Op: blockdev.OpTrim, Off: 16 << 10, Length: 8192})
	do(&blockdev.Request{Op: blockdev.OpTrim, Off: 1024, Length: 2048})
	do(&blockdev.Request{Op: blockdev.OpWriteZeroes, Off: 24 << 10, Length: 4096, NoHole: true})
	expect("trims and zeroes of whole chunks", "unmap data+16384 8192\nzero data+24576 4096\n")
	check(t, hydrateNow(v)) // 28K is a hole of the master, 32K and 36K are not
	expect("hydration and cutting loose",
		"unmap data+28672 4096\nwrite data+32768 8192\nflush store\n"+tableFlags+headerUpdate)
	do(&blockdev.Request{Op: blockdev.OpWrite, Buf: filled(512, 512, 1), Off: 512, FUA: true})
	expect("a write with FUA once loose", "write data+512 512\nflush store\n")
	check(t, v.Close())
	expect("close", "flush store\n"+headerUpdate)
}

// With the cache off a first write's flag is on the device before the write is acknowledged.
func TestGoldenTraceCacheOff(t *testing.T) {
	v, trace := traced(t, 40<<10, memoryMaster(40<<10, false, 0, 40<<10), func(o *Options) { o.CacheMode = cowfmt.CacheOff })
	_, err := v.WriteAt(filled(0, 4096, 1), 0)
	check(t, err)
	trace.Reset()
	_, err = v.WriteAt(filled(4096, 512, 1), 4096)
	check(t, err)
	_, err = v.WriteAt(filled(4096, 512, 2), 4096)
	check(t, err)
	if got, want := trace.String(), "write data+4096 4096\nflush store\n"+tableFlags+"write data+4096 512\n"; got != want {
		t.Errorf("did\n%swant\n%s", got, want)
	}
	check(t, v.Close())
}

// A commit of leaves far apart goes out as several writes between the same two flushes.
func TestCommitOfSeveralLeaves(t *testing.T) {
	leaf := int64(32256) * 4096
	v, trace := traced(t, 4*leaf, nil)
	write := func(leaves ...int64) {
		for _, l := range leaves {
			_, err := v.WriteAt(filled(l*leaf, 4096, 1), l*leaf)
			check(t, err)
		}
		trace.Reset()
		check(t, v.Flush())
	}
	write(0)
	write(0, 1, 3)
	lines := trace.Lines()
	if len(lines) != 4 || lines[0] != "flush store" || lines[3] != "flush store" || !strings.Contains(trace.String(), "write table+4096 4096\n") ||
		!strings.Contains(trace.String(), "write table+12288 4096\n") {
		t.Errorf("did\n%s", trace)
	}
	check(t, v.Close())
}

// gateFlush holds flushes of a device.
type gateFlush struct {
	blockdev.Device
	arrived chan struct{}
	let     chan error
}

func (g *gateFlush) Flush() error {
	if g.arrived == nil {
		return g.Device.Flush()
	}
	g.arrived <- struct{}{}
	if err := <-g.let; err != nil {
		return err
	}
	return g.Device.Flush()
}

// Those who flush while a round is running share the next one.
func TestGroupCommit(t *testing.T) {
	g := &gateFlush{Device: memoryStore(t, 64<<10, 4096, sector, false)}
	v := mustOpen(t, g, nil, uuid.New(), "")
	g.arrived, g.let = make(chan struct{}), make(chan error)
	before := v.Stats().Commits
	flush := func() chan error {
		return start(v, &blockdev.Request{Op: blockdev.OpFlush})
	}
	first := flush()
	<-g.arrived
	var rest []chan error
	for range 20 {
		rest = append(rest, flush())
	}
	eventually(t, "inside", func() bool {
		v.gate.mu.Lock()
		defer v.gate.mu.Unlock()
		return v.gate.inside[writing]+v.gate.inside[flushing] == 21
	})
	time.Sleep(20 * time.Millisecond) // for most to join; who comes later shares with others
	g.let <- nil
	check(t, <-first)
	go func() {
		for range g.arrived {
			g.let <- nil
		}
	}()
	for _, r := range rest {
		check(t, <-r)
	}
	if rounds := v.Stats().Commits - before; rounds < 2 || rounds > 11 {
		t.Errorf("21 flushes took %d rounds", rounds)
	}
	check(t, v.Close())
	close(g.arrived)
}

// once tells of a lost write only once, as the kernel does to each open file.
type once struct {
	blockdev.Device
	mu   sync.Mutex
	lost bool
	slow chan struct{}
}

func (o *once) Flush() error {
	o.mu.Lock()
	lost := o.lost
	o.lost = false
	o.mu.Unlock()
	if lost {
		<-o.slow // the other flush may overtake this one on its way back
		return syscall.EIO
	}
	return nil
}

// Of two flushes that overlap only one is told of an error: the other must fail too.
func TestLatchOverlappingFlushes(t *testing.T) {
	dev := &once{Device: blockdevtest.NewMemory("store", 1<<20, sector), lost: true, slow: make(chan struct{})}
	l := NewLatch(dev)
	errs := make(chan error, 2)
	go func() { errs <- l.Flush() }()
	eventually(t, "told of the error", func() bool {
		dev.mu.Lock()
		defer dev.mu.Unlock()
		return !dev.lost
	})
	go func() { errs <- l.Flush() }()
	time.Sleep(20 * time.Millisecond) // time for the second to overtake the first, if it can
	close(dev.slow)
	for range 2 {
		if err := <-errs; !errors.Is(err, syscall.EIO) {
			t.Errorf("%v: want %v from both", err, syscall.EIO)
		}
	}
}

// Flags that nobody flushes are committed after a while.
func TestCommitByItself(t *testing.T) {
	dev := memoryStore(t, 64<<10, 4096, sector, false)
	v := mustOpen(t, dev, nil, uuid.New(), "", func(o *Options) { o.CommitEvery = time.Millisecond })
	_, err := v.WriteAt(filled(0, 4096, 1), 0)
	check(t, err)
	eventually(t, "committed", func() bool { return !v.table.isDirty() })
	check(t, v.Close())
}
