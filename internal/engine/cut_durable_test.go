package engine

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// At no moment does a header that a power cut could leave list a snapshot as active whose cut is not kept, as it is not before the
// volume goes on with it, nor ever after its deadline.
func TestActiveOnceKept(t *testing.T) {
	for name, deadline := range map[string]time.Duration{"kept": time.Minute, "too late": time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dev, on := blockdevtest.NewCrash(memoryStore(t, snapSize, 4096, 512, true), blockdevtest.CrashOptions{}), shelf{}
				v := mustOpen(t, dev, memoryMaster(snapSize, true, 0, snapSize), uuid.New(), "", on.option)
				cut := uuid.New()
				m, e, err := newSnapshotStore(v.Header(), 0, sector, cut)
				check(t, err)
				on[e.UUID] = func() (blockdev.Device, error) { return m, nil }
				var keeping atomic.Bool
				looked := 0
				look := func() {
					for state := range dev.States(20) {
						st, err := store.Open(state)
						check(t, err)
						for _, e := range st.Header().Stack {
							looked++
							if e.State != cowfmt.StackPending && (!keeping.Load() || v.Suspended()) {
								t.Errorf("%s, and its cut is not kept", cowfmt.StackStateName(e.State))
							}
						}
					}
				}
				dev.OnOp = func(int, string, int64, int64) { look() }
				check(t, v.AddSnapshot(t.Context(), e))
				check(t, v.Cut(t.Context(), cut, deadline))
				look()
				if name == "kept" {
					keeping.Store(true)
					check(t, v.EndCut(t.Context(), cut, true))
				} else {
					eventually(t, "at its deadline", func() bool { return !v.Suspended() })
					if err := v.EndCut(t.Context(), cut, true); !errors.Is(err, ErrResumed) {
						t.Errorf("kept after its deadline: %v", err)
					}
				}
				dev.OnOp = nil
				if looked == 0 || (len(v.Header().Stack) == 1) != (name == "kept") {
					t.Errorf("looked at %d, %v", looked, v.Header().Stack)
				}
				check(t, v.Close())
			})
		})
	}
}

// Until the header with a cursor is durable, chunks below it are saved.
func TestCursorOnceDurable(t *testing.T) {
	m := memoryStore(t, snapSize, 4096, 512, true)
	dev := blockdevtest.NewDelay(m)
	v, snapshot, want := snapped(t, dev, cowfmt.OnErrorBreakSnapshot, time.Minute, func(m *blockdevtest.Memory) blockdev.Device { return m })
	id := v.Stack()[0].ID
	for i, at := range cowfmt.HeaderOffsets {
		dev.HoldIf(func(_ string, off, _ int64) bool { return off == at })
		moved := make(chan error, 1)
		cursor := int64(i+1) * 4096
		go func() { moved <- v.SetCursor(t.Context(), id, cursor) }()
		dev.WaitHeld(1)
		_, err := v.WriteAt(filled(cursor-4096, 4096, 2), cursor-4096)
		check(t, err)
		if got := asOfCut(t, v, memoryMaster(snapSize, true, 0, snapSize), snapshot); !bytes.Equal(got, want) {
			t.Errorf("copy %d of the header has no cursor yet, and what is below it is not saved", i)
		}
		check(t, dev.Release())
		check(t, <-moved)
		if e := entryOf(t, m); e.Cursor != cursor {
			t.Errorf("%v", e)
		}
	}
	check(t, v.Close())
}
