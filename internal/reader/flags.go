package reader

import (
	"bytes"
	"sync"
	"sync/atomic"

	"github.com/virt-cow/virt-cow/internal/store"
)

// flags are the flags of one table that were read, a leaf at a time. A leaf never changes once it is here: reading it again puts
// another one, with the ones of both.
type flags struct {
	read   func(leaf int64, flags []byte) error
	leaves []atomic.Pointer[leaf]
	mu     sync.Mutex // held while a leaf is replaced
}

type leaf [store.LeafFlags]byte

var (
	noFlags  = new(leaf)
	allFlags = func() *leaf { l := leaf(bytes.Repeat([]byte{0xff}, store.LeafFlags)); return &l }()
)

func newFlags(leaves int64, read func(int64, []byte) error) *flags {
	return &flags{read: read, leaves: make([]atomic.Pointer[leaf], leaves)}
}

// known are the flags of a leaf as far as they were read: its ones hold, its zeros may be old.
func (f *flags) known(i int64) *leaf {
	if l := f.leaves[i].Load(); l != nil {
		return l
	}
	return noFlags
}

// once reads a leaf unless it was read: for a table that never changes.
func (f *flags) once(i int64) error {
	if f.leaves[i].Load() != nil {
		return nil
	}
	return f.again(i)
}

// again reads a leaf by a read that begins now.
func (f *flags) again(i int64) error {
	l := new(leaf)
	if err := f.read(i, l[:]); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for n, b := range f.known(i) { // after a power cut flags that were seen may be missing for a while
		l[n] |= b
	}
	switch *l { // most leaves are one of these: they take no memory
	case *noFlags:
		l = noFlags
	case *allFlags:
		l = allFlags
	}
	f.leaves[i].Store(l)
	return nil
}

// set says whether the flag of a chunk is known as one.
func (f *flags) set(chunk int64) bool {
	l, at := f.known(chunk/store.LeafChunks), chunk%store.LeafChunks
	return l[at/8]>>(at%8)&1 == 1
}
