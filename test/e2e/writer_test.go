package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/test/lab"
	"github.com/virt-cow/virt-cow/test/lab/records"
)

const slots = 2048 // records: 8 MiB

// writer writes records to a disk in a guest until it is stopped. Writers of one guest differ by name.
type writer struct {
	guest     *lab.Guest
	dev, name string
}

// startWriter begins to write, and returns once some writes are acknowledged. With a seed it tells the console what it
// has flushed, for toldOnConsole.
func startWriter(t *testing.T, g *lab.Guest, dev, name string, seed ...uint64) writer {
	t.Helper()
	w := writer{guest: g, dev: dev, name: name}
	in(t, g, fmt.Sprintf("guest write %s %d %s %s >/tmp/%s.out 2>&1 &", dev, slots, name, strings.Trim(fmt.Sprint(seed), "[]"), name))
	w.await(t, 50)
	return w
}

// toldOnConsole is what a writer with a seed said that it had flushed, in the guest that ran last.
func (b *bed) toldOnConsole(t *testing.T, name string, seed uint64) records.Log {
	t.Helper()
	text, err := os.ReadFile(b.Path("/var/log/libvirt/qemu/g1-console.log"))
	must(t, err)
	w := records.GuestWriter(slots, seed)
	flushed := make([]uint64, w.Workers)
	for line := range strings.Lines(string(text)) {
		var of string
		var worker int
		var seq uint64
		if n, _ := fmt.Sscanf(strings.TrimRight(line, "\r\n")+"|", records.Told+"|", &of, &worker, &seq); n == 3 &&
			of == name && worker < len(flushed) {
			flushed[worker] = max(flushed[worker], seq)
		}
	}
	return w.Promised(flushed)
}

// await waits until n more writes are acknowledged. A paused guest answers nothing, so each question has a limit of
// its own.
func (w writer) await(t *testing.T, n int) {
	t.Helper()
	from := -1
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		now, err := w.acked(ctx)
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
	state, _ := w.guest.State(t.Context())
	t.Fatalf("writes to %s do not go on; the guest is %s\n%s", w.dev, state, w.guest.ConsoleLog())
}

// acked is how many writes the guest has had acknowledged.
func (w writer) acked(ctx context.Context) (int, error) {
	out, err := w.guest.Run(ctx, "cat /tmp/"+w.name+".progress")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(out))
}

// stop ends the writer, which must not have met an error, flushes, and has the guest verify. It returns what the
// writer did.
func (w writer) stop(t *testing.T) records.Log {
	t.Helper()
	in(t, w.guest, strings.ReplaceAll(`kill -TERM $(cat /tmp/W.pid) && while [ -e /tmp/W.pid ]; do sleep 0.1; done
cat /tmp/W.out; [ ! -s /tmp/W.out ] && dd if=/dev/null of=`+w.dev+` conv=notrunc,fsync 2>/dev/null`, "W", w.name))
	w.verify(t)
	var log records.Log
	must(t, json.Unmarshal([]byte(in(t, w.guest, "cat /tmp/"+w.name+".json")), &log))
	return log
}

// verify has the guest read back what was written.
func (w writer) verify(t *testing.T) {
	t.Helper()
	t.Log("in the guest:", in(t, w.guest, "guest verify "+w.dev+" "+w.name))
}

// The bed's own guest has one writer.

func (b *bed) writer(dev string) writer { return writer{guest: b.guest, dev: dev, name: "w"} }

func (b *bed) startWriter(t *testing.T, dev string) {
	t.Helper()
	startWriter(t, b.guest, dev, "w")
}

func (b *bed) awaitWrites(t *testing.T, n int) {
	t.Helper()
	b.writer("its disk").await(t, n)
}

func (b *bed) stopWriter(t *testing.T, dev string) records.Log {
	t.Helper()
	return b.writer(dev).stop(t)
}
