package blockdevtest

import (
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Ops is a set of kinds of operations.
type Ops uint8

// The kinds of operations of a blockdev.Device.
const (
	Reads Ops = 1 << iota
	Writes
	Zeroes
	Flushes
	ExtentQueries

	AllOps = Reads | Writes | Zeroes | Flushes | ExtentQueries
)

func (o Ops) String() string {
	var names []string
	for i, name := range []string{"read", "write", "write-zeroes", "flush", "extents"} {
		if o&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, "|")
}

// Rule says which operations fail, and how. The zero value of a field means what its comment says first.
type Rule struct {
	Ops         Ops   // any kind, or these
	Off, Length int64 // anywhere, or only operations that touch this range of bytes; a flush touches none
	N           int   // none, or the Nth operation that matches, from 1
	Forever     bool  // once, or from the Nth on

	Err  error // EIO
	Torn int   // a write does nothing, or its first Torn sectors of 512 bytes, rounded down to whole blocks

	// DropUnflushed makes a failing flush undo every write since the last good one, as a kernel that
	// drops pages it could not write. It reads the old bytes before each write: for small devices.
	DropUnflushed bool
}

// Failure is a Rule at work. Several Fault devices may share one; it counts their operations together.
type Failure struct {
	rule Rule

	mu    sync.Mutex
	seen  int // operations that matched
	fired int
}

// NewFailure returns a Failure that has seen no operation yet.
func NewFailure(r Rule) *Failure {
	if r.Ops == 0 {
		r.Ops = AllOps
	}
	if r.Err == nil {
		r.Err = syscall.EIO
	}
	return &Failure{rule: r}
}

// fires counts an operation and says whether it fails.
func (f *Failure) fires(op Ops, off, length int64) bool {
	r := f.rule
	switch {
	case r.Ops&op == 0:
		return false
	case r.Length > 0 && (op == Flushes || off >= r.Off+r.Length || r.Off >= off+length):
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen++
	if r.N == 0 || f.seen < r.N || f.seen > r.N && !r.Forever {
		return false
	}
	f.fired++
	return true
}

// Seen returns how many operations matched the rule so far, whether they failed or not.
func (f *Failure) Seen() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen
}

// Fired returns how many operations failed so far.
func (f *Failure) Fired() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

// EachFailure calls run with r failing its 1st, 2nd, 3rd… operation, until a call in which none failed
// or t has failed, and returns the number of calls with a failure. Run tells which N it was when it
// reports an error.
func EachFailure(t *testing.T, r Rule, run func(n int, f *Failure)) int {
	t.Helper()
	const tooMany = 1_000_000
	for r.N = 1; r.N < tooMany; r.N++ {
		f := NewFailure(r)
		run(r.N, f)
		if f.Fired() == 0 || t.Failed() {
			return r.N - 1
		}
	}
	t.Fatalf("operation %d still fails: does the code under test ever end?", tooMany)
	return 0
}
