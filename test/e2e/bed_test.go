// Package e2e tests virt-cow as its users run it: the real binary, a real libvirtd, real guests.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

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
		if err := lab.Build("./cmd/virt-cow", program); err != nil {
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
	guest  *lab.Guest
	master string
	sum    string // of the master
}

const masterMiB = 48

func newBed(t *testing.T, g lab.GuestConfig) *bed {
	t.Helper()
	return newBedOn(t, lab.Config{}, g)
}

func newBedOn(t *testing.T, c lab.Config, g lab.GuestConfig) *bed {
	t.Helper()
	log := &keptLog{}
	c.Log = log
	h := lab.For(t, c)
	b := &bed{Host: h, vc: h.VirtCow(program), master: filepath.Join(h.Dir, "master.raw")}
	t.Cleanup(func() {
		if t.Failed() || testing.Verbose() {
			t.Log("what the host's processes said:\n" + log.String() + b.engineLogs())
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

// keptLog keeps what is written, for when a test fails.
type keptLog struct{ bytes.Buffer }

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
	out, err := b.guest.Run(t.Context(), command)
	if err != nil {
		t.Fatal(err, "\n", b.guest.ConsoleLog())
	}
	return strings.TrimSpace(out)
}

// disk is the guest's device of a store's volume.
func (b *bed) disk(t *testing.T, store string) string {
	t.Helper()
	i, err := b.vc.StoreInfo(t.Context(), store)
	must(t, err)
	dev, err := b.guest.Disk(t.Context(), libvirtx.Serial(uuid.MustParse(i.UUID)))
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

const slots = 2048 // records: 8 MiB

// startWriter begins to write records in the guest, and returns once some are acknowledged.
func (b *bed) startWriter(t *testing.T, dev string) {
	t.Helper()
	b.in(t, fmt.Sprintf("guest write %s %d w >/tmp/w.out 2>&1 &", dev, slots))
	b.awaitWrites(t, 50)
}

// acked is how many writes the guest has had acknowledged.
func (b *bed) acked(ctx context.Context) (int, error) {
	out, err := b.guest.Run(ctx, "cat /tmp/w.progress")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(out))
}

// awaitWrites waits until n more writes are acknowledged. A paused guest answers nothing, so each question has
// a limit of its own.
func (b *bed) awaitWrites(t *testing.T, n int) {
	t.Helper()
	from := -1
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		now, err := b.acked(ctx)
		cancel()
		if err != nil {
			continue
		}
		if from < 0 {
			from = now
		}
		if now >= from+n {
			return
		}
	}
	state, _ := b.guest.State(t.Context())
	t.Fatalf("writes do not go on; the guest is %s\n%s", state, b.guest.ConsoleLog())
}

// stopWriter ends the writer, which must not have met an error, and has the guest verify. It returns what the
// writer did.
func (b *bed) stopWriter(t *testing.T, dev string) records.Log {
	t.Helper()
	b.in(t, `kill -TERM $(cat /tmp/w.pid) && while [ -e /tmp/w.pid ]; do sleep 0.1; done; cat /tmp/w.out; [ ! -s /tmp/w.out ]`)
	t.Log("in the guest:", b.in(t, "guest verify "+dev+" w"))
	var log records.Log
	must(t, json.Unmarshal([]byte(b.in(t, "cat /tmp/w.json")), &log))
	return log
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
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err = os.Stat(socket); err == nil || time.Now().After(deadline) {
			break
		}
	}
	must(t, err)
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
