package engine

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// hanging is a shelf that hangs: what is opened on it comes when the test says so. closed counts what was given back.
type hanging struct {
	shelf
	goOn   chan struct{}
	opens  atomic.Int32
	closed atomic.Int32
}

func (h *hanging) option(o *Options) {
	o.openWait = 50 * time.Millisecond
	o.OpenSnapshot = func(ctx context.Context, e cowfmt.StackEntry) (*store.Snapshot, func() error, error) {
		h.opens.Add(1)
		<-h.goOn // whatever the context says, as an open of a device without paths
		on, _, err := h.shelf.open(ctx, e)
		return on, func() error { h.closed.Add(1); return nil }, err
	}
}

// Snapshots' devices that hang when the volume is opened are waited for so long and no longer: then they are broken, or the volume
// is refused. What comes late is closed.
func TestSnapshotHangsAtOpen(t *testing.T) {
	for name, policy := range map[string]uint8{"break snapshot": cowfmt.OnErrorBreakSnapshot, "break guest write": cowfmt.OnErrorBreakGuestWrite} {
		t.Run(name, func(t *testing.T) {
			dev, on := memoryStore(t, snapSize, 4096, 512, true), shelf{}
			master := memoryMaster(snapSize, true, 0, snapSize)
			v := mustOpen(t, dev, master.Open(true), uuid.New(), "", on.option)
			for range 3 {
				snap(t, v, on, 0, func(m *blockdevtest.Memory, e *cowfmt.StackEntry) blockdev.Device {
					e.OnError = policy
					return m
				})
			}
			check(t, v.Close())
			stuck := &hanging{shelf: on, goOn: make(chan struct{})}
			v, err := openOn(dev, master.Open(true), uuid.New(), "", stuck.option)
			if policy == cowfmt.OnErrorBreakSnapshot {
				check(t, err)
				_, err = v.WriteAt(filled(0, 4096, 2), 0)
				check(t, err)
				for i, e := range v.Header().Stack {
					if e.State != cowfmt.StackBroken || v.Stack()[i].Err == nil {
						t.Errorf("%v: %v", e, v.Stack()[i].Err)
					}
				}
				check(t, v.Close())
			} else if err == nil || !strings.Contains(err.Error(), "no answer in 50ms") {
				t.Errorf("opened without its snapshots: %v", err)
			}
			close(stuck.goOn)
			eventually(t, "closed again", func() bool { return stuck.closed.Load() == stuck.opens.Load() && stuck.opens.Load() == 3 })
		})
	}
}

// An engine that is told to end while it opens the volume breaks nothing.
func TestSnapshotOpenCancelled(t *testing.T) {
	dev, on := memoryStore(t, snapSize, 4096, 512, true), shelf{}
	master := memoryMaster(snapSize, true, 0, snapSize)
	v := mustOpen(t, dev, master.Open(true), uuid.New(), "", on.option)
	snap(t, v, on, 0)
	check(t, v.Close())
	st, err := store.Open(NewLatch(dev))
	check(t, err)
	ctx, stop := context.WithCancel(t.Context())
	_, err = Open(ctx, Options{
		Store: st, Master: master.Open(true), Owner: cowfmt.Owner{Host: testHost, Boot: uuid.New(), Since: 1}, Log: zerolog.Nop(),
		OpenSnapshot: func(ctx context.Context, e cowfmt.StackEntry) (*store.Snapshot, func() error, error) {
			stop()
			<-ctx.Done()
			return nil, nil, ctx.Err()
		},
	})
	if e := entryOf(t, dev); !errors.Is(err, context.Canceled) || e.State != cowfmt.StackActive {
		t.Errorf("%v, the header has %v", err, e)
	}
}

// A receiver whose way to the snapshot's device hangs is opened all the same, and breaks it once the guest is there.
func TestReceiverWhoseSnapshotHangs(t *testing.T) {
	s, _, _, _ := sharedSnapped(t)
	stuck := &hanging{shelf: s.b.shelf, goOn: make(chan struct{})}
	g := s.a.grantTo(s.b)
	check(t, s.b.open(incoming(g), stuck.option))
	s.moves(t, g)
	s.b.write(0, 512, 3)
	s.b.alone()
	if e := s.b.v.Header().Stack[0]; e.State != cowfmt.StackBroken {
		t.Errorf("%+v", e)
	}
	close(stuck.goOn)
	s.a.close()
	s.b.close()
}
