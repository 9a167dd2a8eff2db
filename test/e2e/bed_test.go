// Package e2e tests virt-cow as its users run it: the real binary, a real libvirtd, real guests.
package e2e

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/test/lab"
	"github.com/virt-cow/virt-cow/test/lab/records"

	"github.com/google/uuid"
)

// program is the binary under test, built by TestMain unless programEnv names one.
var program string

const programEnv = "VIRT_COW_TEST_PROGRAM"

func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "virt-cow-e2e-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "virt-cow")
	if p := os.Getenv(programEnv); p != "" {
		program = p
	} else if lab.Check() == nil {
		if err := lab.BuildVirtCow(program); err != nil {
			log.Print(err)
			return 1
		}
	}
	return m.Run()
}

// bed is a host with a daemon, a master, and a guest that is defined but off.
type bed struct {
	*lab.Host
	vc     *lab.VirtCow
	log    *keptLog // what the daemon and others said
	guest  *lab.Guest
	master string
	sum    string // of the master
}

// daemon calls the daemon.
func (b *bed) daemon() *api.Daemon { return api.NewDaemon(b.Path("/run/virt-cow")) }

// adopted makes a clone that the catalogue knows, and returns its store.
func (b *bed) adopted(t *testing.T, name string) string {
	t.Helper()
	store := b.clone(t, name)
	_, err := b.daemon().Adopt(t.Context(), api.AdoptRequest{Store: store})
	must(t, err)
	return store
}

const masterMiB = 48

func newBed(t *testing.T, g lab.GuestConfig) *bed {
	t.Helper()
	return newBedOn(t, lab.Config{}, g)
}

func newBedOn(t *testing.T, c lab.Config, g lab.GuestConfig) *bed {
	t.Helper()
	t.Parallel() // a guest is one processor's work, and each test has a host of its own
	log := &keptLog{}
	c.Log, c.Env = log, append(c.Env, "VIRT_COW_PLUGINS_DIR="+pluginsDir)
	h := lab.For(t, c)
	b := &bed{Host: h, vc: h.VirtCow(program), log: log, master: filepath.Join(h.Dir, "master.raw")}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("what the host's processes said:\n" + log.String() + b.engineLogs())
			if b.guest != nil {
				t.Log("what the guest said last:\n" + b.guest.ConsoleLog())
			}
		}
	})
	files := map[string][]byte{"etc/hostname": []byte("golden\n"), "data/big": bytes.Repeat([]byte("master data\n"), 1<<20)}
	must(t, lab.MakeMaster(t.Context(), b.master, masterMiB, files))
	b.sum = checksum(t, b.master)
	if g.Name == "" {
		g.Name = "g1"
	}
	var err error
	if b.guest, err = h.Define(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if _, err := b.vc.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// keptLog keeps what is written, for when a test fails. Several write at once.
type keptLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *keptLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *keptLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (b *bed) engineLogs() string {
	var out strings.Builder
	paths, _ := filepath.Glob(filepath.Join(b.Dir, "log", "virt-cow", "*.log"))
	for _, p := range paths {
		text, _ := os.ReadFile(p)
		fmt.Fprintf(&out, "%s:\n%s", filepath.Base(p), text)
	}
	return out.String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func checksum(t *testing.T, path string) string {
	t.Helper()
	sum, err := lab.Checksum(path)
	must(t, err)
	return sum
}

// clone makes a clone of the master in the host's folder and returns its store.
func (b *bed) clone(t *testing.T, name string) string {
	t.Helper()
	store := filepath.Join(b.Dir, name+".vcow")
	b.run(t, "store", "create", "--master", b.master, "--name", name, store)
	return store
}

// run runs a command of virt-cow that must succeed.
func (b *bed) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := b.vc.Run(t.Context(), args...)
	must(t, err)
	return out
}

// in runs a command in the guest that must succeed.
func (b *bed) in(t *testing.T, command string) string {
	t.Helper()
	return in(t, b.guest, command)
}

func in(t *testing.T, g *lab.Guest, command string) string {
	t.Helper()
	out, err := g.Run(t.Context(), command)
	if err != nil {
		t.Fatal(err, "\n", g.ConsoleLog())
	}
	return strings.TrimSpace(out)
}

// disk is the guest's device of a store's volume.
func (b *bed) disk(t *testing.T, store string) string {
	t.Helper()
	return b.diskOf(t, b.guest, store)
}

func (b *bed) diskOf(t *testing.T, g *lab.Guest, store string) string {
	t.Helper()
	i, err := b.vc.StoreInfo(t.Context(), store)
	must(t, err)
	dev, err := g.Disk(t.Context(), libvirtx.Serial(uuid.MustParse(i.UUID)))
	must(t, err)
	return dev
}

func (b *bed) await(t *testing.T, volume, what string, ok func(*api.VolumeStatus) bool) *api.VolumeStatus {
	t.Helper()
	s, err := b.vc.Await(t.Context(), volume, what, ok)
	must(t, err)
	return s
}

// gone accepts a volume the daemon knows no longer.
func gone(s *api.VolumeStatus) bool { return s == nil }

// assertClosed fails unless a store was closed cleanly: nobody owns it.
func (b *bed) assertClosed(t *testing.T, store string) {
	t.Helper()
	i, err := b.vc.StoreInfo(t.Context(), store)
	must(t, err)
	if len(i.Owner) > 0 && string(i.Owner) != "null" {
		t.Fatalf("%s is not closed cleanly: owner %s", store, i.Owner)
	}
}

func (b *bed) assertMasterUnchanged(t *testing.T) {
	t.Helper()
	if now := checksum(t, b.master); now != b.sum {
		t.Fatalf("the master has changed: %s was %s", now, b.sum)
	}
}

// assertNoIOErrors fails if the guest's kernel has seen a failed request.
func (b *bed) assertNoIOErrors(t *testing.T) {
	t.Helper()
	if out := b.in(t, `dmesg | grep -iE "i/o error|blk_update|buffer i/o" || true`); out != "" {
		t.Fatalf("the guest saw errors:\n%s", out)
	}
}

// verifyOutside checks the records in a store that nobody has open, read over NBD.
func (b *bed) verifyOutside(t *testing.T, store string, log records.Log) {
	t.Helper()
	b.assertClosed(t, store)
	raw := filepath.Join(b.Dir, "copy.raw")
	socket := filepath.Join(b.Dir, "verify.sock")
	p, err := b.Start(program, "serve", "--read-only", "--socket", socket, store)
	must(t, err)
	defer p.Stop(15)
	eventually(t, "it serves", func() bool { return listens(socket) })
	_, err = b.Run(t.Context(), "qemu-img", "convert", "-f", "raw", "-O", "raw", "nbd+unix:///?socket="+socket, raw)
	must(t, err)
	f, err := os.Open(raw)
	must(t, err)
	defer f.Close()
	b.verify(t, f, log)
}

func (b *bed) verify(t *testing.T, r io.ReaderAt, log records.Log) {
	t.Helper()
	n, err := log.Verify(r, func(n int) []byte { return make([]byte, n) })
	must(t, err)
	if n == 0 {
		t.Fatal("no records were written: this test proves nothing")
	}
	t.Logf("outside: %d records, %d flushes: nothing lost", n, log.Flushes)
}
