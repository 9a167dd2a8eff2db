package archive

import (
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/fs/localfs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/policy"
	"github.com/kopia/kopia/snapshot/upload"
)

// cpu is what this process has used of it.
func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rss is the most memory this process has had since reset, in MiB.
func rss(t testing.TB) int64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n := int64(0)
			for _, c := range rest {
				if c >= '0' && c <= '9' {
					n = 10*n + int64(c-'0')
				}
			}
			return n >> 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// half is a file of so many bytes that compress to about a half, a quarter of it zeros.
func half(t testing.TB, size int64) string {
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rnd := rand.NewChaCha8([32]byte{1})
	b := make([]byte, LargePiece)
	for at := int64(0); at < size; at += LargePiece {
		if at/LargePiece%4 == 3 {
			clear(b)
		} else {
			io.ReadFull(rnd, b)
			for i := 0; i < len(b); i += 4096 {
				clear(b[i+2048 : i+4096])
			}
		}
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// BenchmarkBackup sets our writing of a raw file against kopia's own snapshot of it, in one run.
func BenchmarkBackup(b *testing.B) {
	const size = 1 << 30
	path := half(b, size)
	var took, used [2]time.Duration
	for b.Loop() {
		for i, run := range []func(testing.TB, Config, string){ours, kopias} {
			c := fresh(b)
			began, before := time.Now(), cpu()
			run(b, c, path)
			took[i] += time.Since(began)
			used[i] += cpu() - before
		}
	}
	for i, name := range []string{"ours", "kopia"} {
		b.ReportMetric(float64(b.N)*size/(1<<20)/took[i].Seconds(), name+"-MiB/s")
		b.ReportMetric(used[i].Seconds()/float64(b.N)/(size>>30), name+"-cpu-s/GiB")
	}
	b.ReportMetric(took[1].Seconds()/took[0].Seconds(), "times-as-fast")
	b.ReportMetric(used[0].Seconds()/used[1].Seconds(), "of-the-cpu")
	b.ReportMetric(0, "ns/op")
}

func ours(t testing.TB, c Config, path string) {
	a := open(t, c)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	w := begin(t, a, meta("g1"))
	d, err := w.Disk("vda", st.Size(), LargePiece)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			buf := make([]byte, LargePiece)
			for p := g; p < d.Pieces(); p += 4 {
				if _, err := f.ReadAt(buf, int64(p)*LargePiece); err != nil {
					t.Error(err)
				} else if err := d.Write(t.Context(), p, buf); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	finish(t, w)
}

func kopias(t testing.TB, c Config, path string) {
	a := open(t, c)
	ctx := t.Context()
	dir, err := localfs.Directory(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	source := snapshot.SourceInfo{Host: "h", UserName: "u", Path: "/disk"}
	err = repo.WriteSession(ctx, a.rep, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) error {
		p := *policy.DefaultPolicy
		p.CompressionPolicy.CompressorName = compressor
		s, err := upload.NewUploader(w).Upload(ctx, fs.Entry(dir), policy.BuildTree(map[string]*policy.Policy{".": &p}, &p), source)
		if err == nil {
			_, err = snapshot.SaveSnapshot(ctx, w, s)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestMemory backs up a disk of 1 TiB that is nearly all zeros, with checkpoints, resumes and opens it, in less than 384 MiB.
func TestMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has a memory of its own")
	}
	for _, piece := range []int64{LargePiece, SmallPiece} {
		a := open(t, fresh(t))
		w := begin(t, a, meta("g1"))
		d, err := w.Disk("vda", 1<<40, piece)
		if err != nil {
			t.Fatal(err)
		}
		before := rss(t)
		data := pieces("a", piece, piece)
		for p := range d.Pieces() {
			err := error(nil)
			if p%8192 == 0 {
				data[0], data[1] = byte(p>>13), 1
				err = d.Write(t.Context(), p, data)
			} else {
				err = d.Zero(t.Context(), p)
			}
			if err != nil {
				t.Fatal(err)
			}
			if (p+1)%(d.Pieces()/4) == 0 {
				token, err := w.Checkpoint(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if p < d.Pieces()/2 {
					w.Close(t.Context())
					if w, err = a.Resume(t.Context(), token); err != nil {
						t.Fatal(err)
					}
					if d, err = w.Disk("vda", 1<<40, d.piece); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		id := finish(t, w)
		dev, err := a.OpenDisk(t.Context(), id, "vda", DiskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		e, err := dev.Extents(0, 1<<40)
		if err != nil || len(e) != 2*d.Pieces()/8192 {
			t.Errorf("%d extents, %v", len(e), err)
		}
		dev.Close()
		most := rss(t)
		t.Logf("pieces of %d MiB: %d MiB at most, %d before", piece>>20, most, before)
		if most > 384 {
			t.Errorf("pieces of %d: %d MiB", piece, most)
		}
	}
}
