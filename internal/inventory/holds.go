package inventory

import (
	"fmt"
	"sync"
)

// holds are the volumes that something is being done to: one operation a volume, but a master may be cloned by many
// at once.
type holds struct {
	mu    sync.Mutex
	names map[string]int // -1: held alone, n: shared by n
}

// take holds all or none of the names. Empty ones are left out.
func (h *holds) take(exclusive string, shared ...string) (release func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if exclusive != "" && h.names[exclusive] != 0 {
		return nil, busy(exclusive)
	}
	for _, name := range shared {
		if name != "" && (h.names[name] < 0 || name == exclusive) {
			return nil, busy(name)
		}
	}
	if exclusive != "" {
		h.names[exclusive] = -1
	}
	for _, name := range shared {
		if name != "" {
			h.names[name]++
		}
	}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.names, exclusive)
		for _, name := range shared {
			if h.names[name]--; h.names[name] <= 0 {
				delete(h.names, name)
			}
		}
	}, nil
}

// errBusy is an ErrInUse.
var errBusy = fmt.Errorf("%w: it is being made, cloned, adopted or deleted just now", ErrInUse)

func busy(name string) error {
	return fmt.Errorf("volume %s: %w", name, errBusy)
}
