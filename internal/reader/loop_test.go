package reader_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/reader"
)

// luns are files, each with a loop device for each of two hosts: what one has in its page cache the other does not see.
type luns struct {
	dir   string
	hosts [2]map[string]string // paths, by name
}

func newLuns(t *testing.T) *luns {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: loop devices need root")
	}
	return &luns{t.TempDir(), [2]map[string]string{{}, {}}}
}

// lun is a new one, as the first host has it.
func (l *luns) lun(t *testing.T) func(name string, size int64) blockdev.Device {
	return func(name string, size int64) blockdev.Device {
		t.Helper()
		file := filepath.Join(l.dir, name)
		check(t, os.WriteFile(file, nil, 0o600))
		check(t, os.Truncate(file, size))
		for _, host := range l.hosts {
			out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
			if err != nil {
				t.Skipf("SKIPPED: no loop device: %v: %s", err, out)
			}
			dev := strings.TrimSpace(string(out))
			host[name] = dev
			t.Cleanup(func() {
				if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
					t.Errorf("losetup --detach %s: %v: %s", dev, err, out)
				}
			})
		}
		return l.open(t, 0, name, blockdev.FileOptions{Direct: true})
	}
}

func (l *luns) open(t *testing.T, host int, name string, o blockdev.FileOptions) blockdev.Device {
	t.Helper()
	d, err := blockdev.OpenFile(t.Context(), l.hosts[host][name], o)
	check(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// config is what the second host reads from.
func (l *luns) config(t *testing.T, r *rig) reader.Config {
	t.Helper()
	direct := blockdev.FileOptions{ReadOnly: true, Direct: true}
	c := r.config()
	c.Volume, c.Snapshot = l.open(t, 1, "store", direct), l.open(t, 1, "snapshot", direct)
	if c.Origin != nil {
		c.Origin = l.open(t, 1, "origin", direct)
	}
	return c
}

// Two hosts with a LUN each for one disk: the guest writes on the first, the second reads with O_DIRECT, several pieces at once.
func TestTwoHosts(t *testing.T) {
	for _, s := range []shape{
		{name: "raw disk", size: 24<<20 + 512, chunk: 16 << 10},
		{name: "clone", clone: true, size: 24<<20 + 512, chunk: 4096, master: 16<<20 + 512},
	} {
		t.Run(s.name, func(t *testing.T) {
			l := newLuns(t)
			r := s.disks(t, l.lun(t))
			r.snap(t)
			v, err := reader.Open(t.Context(), l.config(t, r))
			check(t, err)
			for range 2 {
				stop := make(chan struct{})
				var guest sync.WaitGroup
				for n := range uint64(2) {
					guest.Go(func() {
						rng := rand.New(rand.NewPCG(n, 21))
						for {
							select {
							case <-stop:
								return
							default:
								if err := change(r.v, rng); err != nil {
									t.Error(err)
									return
								}
							}
						}
					})
				}
				const piece = 4 << 20
				var readers sync.WaitGroup
				for off := int64(0); off < s.size; off += piece {
					readers.Go(func() {
						if err := r.compare(v, off, min(piece, s.size-off)); err != nil {
							t.Error(err)
						}
					})
				}
				readers.Wait()
				_, err = v.Verify(t.Context(), 0)
				check(t, err)
				close(stop)
				guest.Wait()
			}
			check(t, r.v.Close())
		})
	}
}

// What is open through the page cache is refused where another host may write to it.
func TestPageCacheIsRefused(t *testing.T) {
	l := newLuns(t)
	r := shapes[0].disks(t, l.lun(t))
	r.list(t)
	_, err := reader.Open(t.Context(), l.config(t, r))
	check(t, err)
	for _, name := range []string{"store", "origin", "snapshot"} {
		c := l.config(t, r)
		cached := l.open(t, 1, name, blockdev.FileOptions{ReadOnly: true})
		for n, d := range map[string]*blockdev.Device{"store": &c.Volume, "origin": &c.Origin, "snapshot": &c.Snapshot} {
			if n == name {
				*d = cached
			}
		}
		if _, err := reader.Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), "O_DIRECT") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// BenchmarkRead reads a volume in pieces of 4 MiB, two at a time: plainly with O_DIRECT, and as of a cut with nothing saved, with
// every sixteenth chunk saved, and with all.
func BenchmarkRead(b *testing.B) {
	const size, piece = 256 << 20, 4 << 20
	dir := b.TempDir()
	file := func(name string, size int64) blockdev.Device {
		path := filepath.Join(dir, name)
		check(b, os.WriteFile(path, nil, 0o600))
		check(b, os.Truncate(path, size))
		d, err := blockdev.OpenFile(b.Context(), path, blockdev.FileOptions{Direct: true})
		check(b, err)
		b.Cleanup(func() { _ = d.Close() })
		return d
	}
	all := func(b *testing.B, d blockdev.Device) {
		b.Helper()
		b.SetBytes(size)
		runtime.GC() // of what made the disks
		began := cpu(b)
		for b.Loop() {
			var readers sync.WaitGroup
			for n := range int64(2) {
				readers.Go(func() {
					p := blockdev.Alloc(piece)
					defer blockdev.Free(p)
					for off := n * piece; off < size; off += 2 * piece {
						if _, err := d.ReadAt(p, off); err != nil {
							b.Error(err)
						}
					}
				})
			}
			readers.Wait()
		}
		b.ReportMetric((cpu(b)-began)/float64(b.N)*(1<<30)/size, "cpu-s/GiB")
	}
	for _, chunk := range []int64{4096, 64 << 10} {
		s := shape{name: "raw disk", size: size, chunk: chunk}
		r := s.disks(b, file)
		fillUp(b, r.origin)
		b.Run("plain", func(b *testing.B) { all(b, r.origin) })
		r.list(b)
		b.Run(fmt.Sprintf("nothing saved, %dK", chunk>>10), func(b *testing.B) { all(b, r.view(b)) })
		r.save(b, func(c int64) bool { return c%16 == 0 })
		b.Run(fmt.Sprintf("a 16th saved, %dK", chunk>>10), func(b *testing.B) { all(b, r.view(b)) })
		r.save(b, func(c int64) bool { return true })
		b.Run(fmt.Sprintf("all saved, %dK", chunk>>10), func(b *testing.B) { all(b, r.view(b)) })
	}
}
