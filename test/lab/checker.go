package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/virt-cow/virt-cow/test/lab/records"
)

// CheckerConfig says what a Checker is to do.
type CheckerConfig struct {
	Name string // of the guest's checkers each has its own: letters and digits
	Disk string // in the guest, as Guest.Disk has it
	Seed uint64 // of what is written where, not 0
	// Slots is how much of the disk is written, from its beginning, in records.Size; 0 for 2048, which is 8 MiB.
	Slots int
	Base  bool // records.WriteBase wrote these slots, of the disk or of its master
}

// Checker runs in a guest, wherever that moves: it writes numbered, checksummed records at random places, flushes now
// and then and says on the console how far, and reads back what it wrote, past the guest's page cache and through it,
// until it is stopped or something is wrong.
type Checker struct {
	CheckerConfig
	Guest *Guest
}

// StartChecker starts a checker, and returns once some of its writes are acknowledged.
func (g *Guest) StartChecker(ctx context.Context, c CheckerConfig) (*Checker, error) {
	if c.Slots == 0 {
		c.Slots = 2048
	}
	k := &Checker{CheckerConfig: c, Guest: g}
	base := ""
	if c.Base {
		base = "base"
	}
	_, err := g.Run(ctx, fmt.Sprintf("guest check %s %d %s %d %s >/tmp/%[3]s.out 2>&1 &", c.Disk, c.Slots, c.Name, c.Seed, base))
	if err != nil {
		return nil, err
	}
	return k, k.Await(ctx, 50)
}

// Acked is how many writes the guest has had acknowledged, as it noted it last: it may have more by now.
func (c *Checker) Acked(ctx context.Context) (int, error) {
	out, err := c.Guest.Run(ctx, "cat /tmp/"+c.Name+".progress")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(out))
}

// AckedNow is how many writes the guest has had acknowledged at a moment after the call. It must be writing.
func (c *Checker) AckedNow(ctx context.Context) (int, error) {
	// The note that comes next may have been begun before.
	out, err := c.Guest.Run(ctx, `f=/tmp/`+c.Name+`.progress
for i in 1 2; do a=$(cat $f); while [ "$(cat $f)" = "$a" ]; do sleep 0.1; done; done; cat $f`)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(out))
}

// Await waits until n more writes are acknowledged, or the checker has found something wrong.
func (c *Checker) Await(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, stateChange)
	defer cancel()
	for from := -1; ; {
		if err := c.Wrong(); err != nil {
			return err
		}
		// A paused guest answers nothing, so each question has a limit of its own.
		ask, cancel := context.WithTimeout(ctx, 10*time.Second)
		now, err := c.Acked(ask)
		cancel()
		if err == nil && from < 0 {
			from = now
		}
		if err == nil && now >= from+n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("checker %s: writes to %s do not go on: %w\n%s", c.Name, c.Disk, ctx.Err(), c.Guest.ConsoleLog())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Stop ends the checker, which must have found nothing wrong, flushes, has the guest verify all, and returns what the
// checker did.
func (c *Checker) Stop(ctx context.Context) (records.Log, error) {
	var log records.Log
	_, err := c.Guest.Run(ctx, strings.ReplaceAll(`kill -TERM $(cat /tmp/W.pid) && while [ -e /tmp/W.pid ]; do sleep 0.1; done
cat /tmp/W.out; [ ! -s /tmp/W.out ] && dd if=/dev/null of=`+c.Disk+` conv=notrunc,fsync 2>/dev/null && guest verify `+c.Disk+` W`, "W", c.Name))
	if err != nil {
		return log, errors.Join(c.Wrong(), fmt.Errorf("checker %s: %w", c.Name, err))
	}
	out, err := c.Guest.Run(ctx, "cat /tmp/"+c.Name+".json")
	if err != nil {
		return log, err
	}
	return log, json.Unmarshal([]byte(out), &log)
}

// Told is what must be on the disk whatever became of the guest: what the checker said on the console that it had
// flushed.
func (c *Checker) Told() (records.Log, error) {
	w := records.GuestWriter(c.Slots, c.Seed)
	w.Base = c.Base
	flushed := make([]uint64, w.Workers)
	err := c.console(func(line string) error {
		var of string
		var worker int
		var seq uint64
		if n, _ := fmt.Sscanf(line+"|", records.Told+"|", &of, &worker, &seq); n == 3 && of == c.Name && worker < len(flushed) {
			flushed[worker] = max(flushed[worker], seq)
		}
		return nil
	})
	return w.Promised(flushed), err
}

// ErrPanicked says that a guest's kernel has panicked. It starts again by itself.
//
// Emulated guests do that now and then after a live migration, and as often something in their kernel waits for ever: 6 of 99 on a busy
// machine, with a plain disk that has nothing to do with virt-cow (none of 112 with HurryMigration). QEMU seems to lose a page that its
// emulated processor wrote to while it looked for what had changed. What is on a volume has no part in it as long as the guest runs
// from its initramfs, as the lab's do: nothing from there is mounted or executed.
var ErrPanicked = errors.New("the guest's kernel has panicked")

// Wrong is what the checker said on the console that it found, nil if it said nothing of the kind; or else that the guest's
// kernel has panicked (ErrPanicked), which ends a checker too.
func (c *Checker) Wrong() error {
	mark := fmt.Sprintf(records.Wrong, c.Name, "")
	begun := false // the console has what guests of before said
	var panicked error
	err := c.console(func(line string) error {
		begun = begun || strings.Contains(line, " "+c.Name+" ")
		if begun && panicked == nil && strings.Contains(line, "Kernel panic") {
			panicked = fmt.Errorf("checker %s of guest %s: %w: %s", c.Name, c.Guest.Name, ErrPanicked, line)
		}
		if _, what, ok := strings.Cut(line, mark); ok {
			return fmt.Errorf("checker %s of guest %s: %s", c.Name, c.Guest.Name, what)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return panicked
}

func (c *Checker) console(each func(line string) error) error {
	b, err := os.ReadFile(c.Guest.ConsolePath())
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if err := each(strings.TrimRight(line, "\r\n")); err != nil {
			return err
		}
	}
	return nil
}

// Verify checks a log against a disk or file from outside, such as a store's NBD export, or its master. It returns how
// many slots were looked at.
func Verify(r io.ReaderAt, log records.Log) (int, error) {
	return log.Verify(r, func(n int) []byte { return make([]byte, n) })
}
