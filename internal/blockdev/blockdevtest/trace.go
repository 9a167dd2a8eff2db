package blockdevtest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Trace is what happened to one or more Crash devices, a line an operation, in the order of issue:
//
//	write NAME+OFFSET LENGTH
//	zero NAME+OFFSET LENGTH
//	unmap NAME+OFFSET LENGTH
//	flush DEVICE
//
// in bytes, where NAME is the region the operation begins in and OFFSET counts from its start; or the
// device, where no region holds it. Reads leave no line. A test compares it with the order it wants.
type Trace struct {
	mu    sync.Mutex
	lines []string
}

// Region names a range of a device, in bytes.
type Region struct {
	Name        string
	Off, Length int64
}

func (d *crashDisk) place(off, length int64) string {
	for _, r := range d.regions {
		if off >= r.Off && off-r.Off < r.Length {
			return fmt.Sprintf("%s+%d %d", r.Name, off-r.Off, length)
		}
	}
	return fmt.Sprintf("%s+%d %d", d.info.Name, off, length)
}

func (t *Trace) add(line string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, line)
}

// Mark adds a line of the test's own.
func (t *Trace) Mark(line string) { t.add(line) }

// Lines returns the lines so far.
func (t *Trace) Lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.lines)
}

// String returns the lines so far, each ended by a newline.
func (t *Trace) String() string {
	var b strings.Builder
	for _, l := range t.Lines() {
		b.WriteString(l + "\n")
	}
	return b.String()
}

// Reset forgets the lines so far.
func (t *Trace) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = nil
}
