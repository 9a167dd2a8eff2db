package main

import (
	"bytes"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/reader"
)

// unanswered is a write that was under way when the engine died.
type unanswered struct {
	off  int
	data []byte
}

// killedUnder has four writers write to a volume, which model follows, kills its engine, and returns what nobody answered.
func (s *server) killedUnder(model []byte, round int) []unanswered {
	s.b.t.Helper()
	const writers = 4
	ended := make(chan unanswered, writers)
	size := len(model) / writers // each has its own part
	for n := range writers {
		dev := s.dial()
		part := model[n*size : (n+1)*size]
		go func() {
			for i := uint64(0); ; i++ {
				seed := uint64(round)<<32 | uint64(n)<<24 | i
				r := noise(seed, 16)
				length := 512 * (1 + int(r[0])%64)
				off := (int(r[1])<<8 | int(r[2])) * 512 % (len(part) - length) &^ 511
				w := noise(seed+1, length)
				var err error
				if i%5 == 4 {
					clear(w)
					err = dev.WriteZeroes(int64(n*size+off), int64(length), i%2 == 0)
				} else {
					_, err = dev.WriteAt(w, int64(n*size+off))
				}
				if err != nil {
					ended <- unanswered{n*size + off, w}
					return
				}
				copy(part[off:], w)
				if i%16 == 15 && dev.Flush() != nil {
					ended <- unanswered{}
					return
				}
			}
		}()
	}
	before := s.status().IO.Writes
	eventually(s.b.t, "writes", func() bool { return s.status().IO.Writes > before+uint64(100+50*round) })
	s.kill()
	// Before there is a new engine: a client that had nothing under way would go on with that one.
	var lasts []unanswered
	for range writers {
		lasts = append(lasts, <-ended)
	}
	return lasts
}

// holdsAll says whether a volume is what model has, or of what was under way either. Model then has what it holds.
func (s *server) holdsAll(model []byte, lasts []unanswered) {
	t := s.b.t
	t.Helper()
	dev := s.dial()
	defer dev.Close()
	got := readAll(t, dev, len(model))
	for _, l := range lasts {
		for at := 0; at < len(l.data); at += 512 {
			where := l.off + at
			if bytes.Equal(got[where:where+512], l.data[at:at+512]) {
				copy(model[where:], l.data[at:at+512])
			}
		}
	}
	same(t, "what was acknowledged", got, model)
}

func readAll(t *testing.T, dev blockdev.Device, size int) []byte {
	t.Helper()
	p := make([]byte, size)
	for off := 0; off < size; off += mib {
		if _, err := dev.ReadAt(p[off:off+mib], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("byte %d (sector %d) is not %s", i, i/512, what)
		}
	}
}

// asOfCut says whether a volume's files have it as of a cut, as another host reads it.
func (b *bench) asOfCut(want []byte, snapshot string, c reader.Config) {
	b.t.Helper()
	i := b.info(snapshot)
	c.SnapshotUUID, c.Cut, c.Log = uuid.MustParse(i.UUID), uuid.MustParse(i.Snapshot.Cut), zerolog.Nop()
	v, err := reader.Open(b.t.Context(), c)
	if err != nil {
		b.t.Fatal(err)
	}
	defer v.Close()
	got := readAll(b.t, v, len(want))
	if _, err := v.Verify(b.t.Context(), 0); err != nil {
		b.t.Fatal(err)
	}
	same(b.t, "as of the cut", got, want)
}

// The engine of a volume with a snapshot is killed under writes, again and again: the volume has what was acknowledged, and its
// snapshot what was there at the cut.
func TestSnapshotKilledUnderWrites(t *testing.T) {
	t.Parallel()
	for name, create := range map[string]func(b *bench){
		"clone": func(b *bench) { b.clone("v", "m.raw", "--chunk", "64K") },
		"linear": func(b *bench) {
			b.must("cp", "m.raw", "disk")
			b.run("store", "create", "--raw", b.path("disk"), b.path("v")).exits(0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			model := b.image("m.raw", 8*mib)
			create(b)
			file := func(name string) blockdev.Device {
				dev, err := blockdev.OpenFile(t.Context(), b.path(name), blockdev.FileOptions{ReadOnly: true, Direct: true})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { dev.Close() })
				return dev
			}
			s := b.serve("v")
			lasts := s.killedUnder(model, 0)
			s = b.serve("v")
			s.holdsAll(model, lasts)
			s.cutNow("v", "snap", api.BreakGuestWrite)
			want := bytes.Clone(model)
			view := reader.Config{Volume: file("v"), Snapshot: file("snap")}
			if name == "clone" {
				view.Master = file("m.raw")
			} else {
				view.Origin = file("disk")
			}
			for round := 1; round < 4; round++ {
				lasts := s.killedUnder(model, round)
				b.asOfCut(want, "snap", view)
				s = b.serve("v")
				s.holdsAll(model, lasts)
				if st := s.status().Stack; len(st) != 1 || st[0].State != api.SnapshotActive {
					t.Fatalf("%+v", st)
				}
			}
			s.signal(syscall.SIGTERM)
			s.wait(0)
			b.asOfCut(want, "snap", view)
			if saved := b.info("snap").Snapshot.Saved; saved == 0 {
				t.Error("nothing was saved")
			}
		})
	}
}
