package cowfmt

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
)

// Choice is the header to go by, and what is wrong with its copies.
type Choice struct {
	Header *Header
	Copy   int // the copy it was read from
	// Problem is nil for a copy with the chosen content. Otherwise it says why the copy must be written
	// again, before the chosen one is next touched: ErrStale, ErrCorrupt or ErrNotStore.
	Problem [2]error
}

// Choose picks the header to go by out of both copies; nil stands for one that couldn't be read.
//
// The newest intact copy, by (epoch, sequence), decides, even if this program can't use it: an older
// copy that it could use is a state that the store has left. ErrNotStore means that neither copy has the
// magic; ErrCorrupt that no copy is intact, or that the two can't both be of this store; the other errors
// are those of DecodeHeader. Problem is filled in also with an error.
func Choose(copies [2][]byte) (Choice, error) {
	var c Choice
	var p [2]*intact
	for i, b := range copies {
		p[i], c.Problem[i] = checkCopy(b)
	}
	if p[0] == nil && p[1] == nil {
		what := ErrCorrupt
		if errors.Is(c.Problem[0], ErrNotStore) && errors.Is(c.Problem[1], ErrNotStore) {
			what = ErrNotStore
		}
		return c, fmt.Errorf("%w: header copy 0: %v; header copy 1: %v", what, c.Problem[0], c.Problem[1])
	}
	if p[0] == nil {
		c.Copy = 1
	} else if p[1] != nil {
		if err := c.compare(p[0], p[1]); err != nil {
			return c, err
		}
	}
	h, err := p[c.Copy].decode()
	if err != nil {
		c.Problem[c.Copy] = err
		return c, fmt.Errorf("header copy %d, the newest intact one: %w", c.Copy, err)
	}
	c.Header = h
	return c, nil
}

// compare sets Copy to the newer of two intact copies, and the Problem of the older.
func (c *Choice) compare(a, b *intact) error {
	if a.UUID != b.UUID {
		return fmt.Errorf("%w: header copy 0 is of store %v and copy 1 of store %v: making a store here was cut off: make it again",
			ErrCorrupt, a.UUID, b.UUID)
	}
	older := a
	switch cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Sequence, b.Sequence)) {
	case 0:
		if !bytes.Equal(a.used, b.used) {
			return fmt.Errorf("%w: both header copies are of epoch %d, sequence %d, but differ: two hosts wrote at the same time",
				ErrCorrupt, a.Epoch, a.Sequence)
		}
		return nil
	case 1:
		older = b
	case -1:
		c.Copy = 1
	}
	c.Problem[1-c.Copy] = fmt.Errorf("%w: epoch %d, sequence %d", ErrStale, older.Epoch, older.Sequence)
	return nil
}
