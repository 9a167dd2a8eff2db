package records

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func plain(n int) []byte { return make([]byte, n) }

func written(t *testing.T) (*os.File, Log) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w := &Writer{Disk: f, Slots: 64, Workers: 2, FlushEvery: 10, Alloc: plain}
	stop := make(chan struct{})
	done := make(chan struct{})
	var log Log
	go func() {
		defer close(done)
		log, err = w.Run(stop)
	}()
	for w.Acked() < 500 {
	}
	close(stop)
	<-done
	if err != nil {
		t.Fatal(err)
	}
	return f, log
}

func TestVerifyAcceptsWhatWasWritten(t *testing.T) {
	f, log := written(t)
	n, err := log.Verify(f, plain)
	if err != nil || n == 0 || log.Flushes == 0 {
		t.Fatalf("%d slots, %d flushes: %v", n, log.Flushes, err)
	}
}

// TestPromised: what a writer is known to have flushed is what it wrote, and no more.
func TestPromised(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := GuestWriter(256, 7)
	w.Disk, w.Alloc = f, plain
	flushed := make([]uint64, w.Workers) // each worker has its own
	w.Flushed = func(worker int, seq uint64) { flushed[worker] = seq }
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_, err = w.Run(stop)
	}()
	for w.Acked() < 500 {
	}
	close(stop)
	<-done
	if err != nil {
		t.Fatal(err)
	}
	log := w.Promised(flushed)
	if n, err := log.Verify(f, plain); err != nil || n == 0 || log.Flushes == 0 {
		t.Fatalf("%d slots, %d flushes: %v", n, log.Flushes, err)
	}
	flushed[1] += 1000
	if _, err := w.Promised(flushed).Verify(f, plain); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Fatalf("what was never written is not missed: %v", err)
	}
	w.Seed = 8
	flushed[1] -= 1000
	if _, err := w.Promised(flushed).Verify(f, plain); err == nil {
		t.Fatal("another writer's records are taken for this one's")
	}
}

func TestVerifyFindsWhatIsLost(t *testing.T) {
	for _, c := range []struct {
		name, want string
		harm       func(f *os.File, log *Log)
	}{
		{"an older record", "lost", func(f *os.File, log *Log) {
			log.Slots[3] = Slot{Issued: 1000000, Acked: 1000000}
		}},
		{"a newer record", "last written", func(f *os.File, log *Log) {
			b := plain(Size)
			Fill(b, 3, 1000000)
			f.WriteAt(b, 3*Size)
			log.Slots[3] = Slot{Issued: 5, Acked: 5}
		}},
		{"a torn record", "checksum", func(f *os.File, log *Log) {
			b := plain(Size)
			Fill(b, 3, 5)
			b[2000] ^= 1
			f.WriteAt(b, 3*Size)
			log.Slots[3] = Slot{Issued: 5, Acked: 5}
		}},
		{"another slot's record", "record of slot 4", func(f *os.File, log *Log) {
			b := plain(Size)
			Fill(b, 4, 5)
			f.WriteAt(b, 3*Size)
			log.Slots[3] = Slot{Issued: 5, Acked: 5}
		}},
		{"zeros", "no record", func(f *os.File, log *Log) {
			f.WriteAt(plain(Size), 3*Size)
			log.Slots[3] = Slot{Issued: 5, Acked: 5}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, log := written(t)
			c.harm(f, &log)
			if _, err := log.Verify(f, plain); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("want an error with %q, got %v", c.want, err)
			}
		})
	}
}

// lying is a disk whose reads of one slot are those of an older time.
type lying struct {
	*os.File
	slot int
	old  []byte
}

func (l *lying) ReadAt(p []byte, off int64) (int, error) {
	n, err := l.File.ReadAt(p, off)
	if at := int64(l.slot)*Size - off; at >= 0 && at < int64(len(p)) {
		copy(p[at:], l.old)
	}
	return n, err
}

// TestReadBack: what is read while records are written is right, and what is stale is found at once.
func TestReadBack(t *testing.T) {
	const slots = 32
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := WriteBase(f, slots); err != nil {
		t.Fatal(err)
	}
	if n, err := Base(slots).Verify(f, plain); err != nil || n != slots {
		t.Fatalf("%d slots: %v", n, err)
	}
	stale := plain(Size)
	Fill(stale, 5, 0)
	w := GuestWriter(slots, 7)
	w.Disk, w.Alloc, w.Base, w.Readers = f, plain, true, []io.ReaderAt{f}
	stop := make(chan struct{})
	done := make(chan Log)
	go func() {
		var log Log
		log, err = w.Run(stop)
		done <- log
	}()
	for w.Read() < 500 {
	}
	close(stop)
	log := <-done
	if err != nil {
		t.Fatal(err)
	}
	if n, err := log.Verify(f, plain); err != nil || n != slots {
		t.Fatalf("%d slots: %v", n, err)
	}
	if _, err := Base(slots).Verify(f, plain); err == nil {
		t.Fatal("a master that was written to passes for one that was not")
	}

	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if err := WriteBase(f, slots); err != nil {
		t.Fatal(err)
	}
	w = GuestWriter(slots, 7)
	w.Disk, w.Alloc, w.Base, w.Readers = f, plain, true, []io.ReaderAt{f, &lying{f, 5, stale}}
	stop = make(chan struct{})
	go func() {
		var log Log
		log, err = w.Run(stop)
		done <- log
	}()
	for deadline := time.Now().Add(time.Minute); w.Read() < 1e5 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	close(stop)
	<-done
	if err == nil || !strings.Contains(err.Error(), "slot 5: holds record 0") {
		t.Fatalf("stale reads are not found: %v", err)
	}
}
