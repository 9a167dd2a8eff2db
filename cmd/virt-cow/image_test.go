package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

const mib = 1 << 20

// noise is bytes that are the same for the same seed, and never zero.
func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32()) | 1
	}
	return p
}

// image makes a file of noise with a hole in its middle third, and returns its content.
func (b *bench) image(name string, size int) []byte {
	b.t.Helper()
	content := noise(uint64(size), size)
	from, to := size/3&^0xfff, size*2/3&^0xfff
	clear(content[from:to])
	f, err := os.Create(b.path(name))
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	for _, part := range [][2]int{{0, from}, {to, size}} {
		if _, err := f.WriteAt(content[part[0]:part[1]], int64(part[0])); err != nil {
			b.t.Fatal(err)
		}
	}
	return content
}

// clone makes a clone of a master.
func (b *bench) clone(store, master string, flags ...string) {
	b.t.Helper()
	if !strings.Contains(master, ":") {
		master = b.path(master)
	}
	b.run(append([]string{"store", "create", "--master", master, b.path(store)}, flags...)...).exits(0)
}

func (b *bench) read(name string) []byte {
	b.t.Helper()
	p, err := os.ReadFile(b.path(name))
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// poke changes one bit of a file.
func (b *bench) poke(name string, off int64) {
	b.t.Helper()
	f, err := os.OpenFile(b.path(name), os.O_RDWR, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	var one [1]byte
	if _, err := f.ReadAt(one[:], off); err != nil {
		b.t.Fatal(err)
	}
	one[0] ^= 0x10
	if _, err := f.WriteAt(one[:], off); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) info(store string) (i storeInfo) {
	b.t.Helper()
	b.run("--json", "store", "info", b.path(store)).exits(0).json(&i)
	return i
}

// loop puts a loop device over a file.
func (b *bench) loop(file string, flags ...string) string {
	b.t.Helper()
	need(b.t, "root", "losetup")
	o := b.exec("losetup", append([]string{"--find", "--show", b.path(file)}, flags...)...)
	if o.code != 0 {
		b.t.Skipf("SKIPPED: no loop device: %s", o.stderr)
	}
	dev := strings.TrimSpace(o.stdout)
	b.detaches(dev)
	return dev
}

// detaches has a loop device detached at the end of the test, unless that is done before: never twice, as by then it may be
// another test's.
func (b *bench) detaches(loop string) (detach func()) {
	detach = sync.OnceFunc(func() { b.must("losetup", "--detach", loop) })
	b.t.Cleanup(detach)
	return detach
}

func (b *bench) truncate(name string, size int64) {
	b.t.Helper()
	f, err := os.OpenFile(b.path(name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		b.t.Fatal(err)
	}
}

// names are the files of a folder of the bench.
func (b *bench) names() string {
	b.t.Helper()
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		b.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

func write(t *testing.T, dev blockdev.Device, p []byte, off int64) {
	t.Helper()
	if _, err := dev.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func flush(t *testing.T, dev blockdev.Device) {
	t.Helper()
	if err := dev.Flush(); err != nil {
		t.Fatal(err)
	}
}

// holds checks what is at off.
func holds(t *testing.T, dev blockdev.Device, want []byte, off int64) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := dev.ReadAt(got, off); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("byte %d is %#x, want %#x", off+int64(i), got[i], want[i])
			}
		}
	}
}
