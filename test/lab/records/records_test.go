package records

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
