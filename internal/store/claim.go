package store

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// # Claims
//
// Two hosts may find a store without an owner at the same time. A claim slot is a host's flag: it raises it, makes
// it durable, and only then reads the others'. Of two hosts that do so at least one sees the other's, and who sees
// another's lowers its own and tries again later. So at most one host at a time reads the header again and writes
// itself into it as the owner; whoever comes after reads that owner. A claim is only ever raised around that write,
// and a flag that stays up, its host dead, is never taken for anything but a raised one: the operator clears it.
//
// That needs no clocks, as long as each host has a slot of its own. A host keeps its slot, lowered, from one time to
// the next. Only taking one for the first time needs time: two hosts that chose the same free slot both write it,
// so each waits, longer than the other's write may take, and reads it again: the last write was the one that counts.
// What an overwritten flag leaves behind is another raised flag, so a third host is kept out all the while. The one
// assumption is that from reading its own flag again to the owner's record being durable a host takes less than the
// wait of the one that overwrote it. A host measures that itself: where it took longer than half of it, it waits and
// reads everything again.
//
// While there is an owner that lives, a host needs no claim: nobody but the owner writes the header then. Who opens a
// store after an owner that died, this host's of an earlier boot or a forced takeover's, claims it: there may be two.

// ErrClaimed says that another host is opening the store, or died while it did.
var ErrClaimed = errors.New("store is being opened on another host")

// Claiming says how to claim a store.
type Claiming struct {
	// Shared: other hosts may see the store's device. Otherwise nothing is written, but what others claim counts.
	Shared   bool
	Wait     time.Duration // after a slot was taken for the first time; 0: a second. All hosts must have the same
	Patience time.Duration // how long another host's claim is waited for; 0: ten times Wait

	sleep func(context.Context, time.Duration) error // nil: a real one
}

func (c Claiming) withDefaults() Claiming {
	if c.Wait == 0 {
		c.Wait = time.Second
	}
	if c.Patience == 0 {
		c.Patience = 10 * c.Wait
	}
	if c.sleep == nil {
		c.sleep = func(ctx context.Context, d time.Duration) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(d):
				return nil
			}
		}
	}
	return c
}

// claim is one that is raised, or on its way up.
type claim struct {
	Claiming
	s        *Store
	mine     cowfmt.ClaimSlot // as it is raised
	slot     int
	dead     uuid.UUID // a boot of another host whose claims don't count: it is proved dead; zero: none
	held     bool      // the slot was found to be as this host raised it
	verified time.Time // when no other was seen; zero: not yet
}

// rival is another host's claim, seen.
type rival struct{ SlotClaim }

func (rival) Error() string { return ErrClaimed.Error() }

// raise claims the store for a host; without an error the claim must be lowered. ErrClaimed: another host has one, and kept it for
// as long as was waited.
func (s *Store) raise(ctx context.Context, me cowfmt.Owner, dead uuid.UUID, how Claiming) (*claim, error) {
	c := &claim{Claiming: how.withDefaults(), s: s, dead: dead}
	c.mine = cowfmt.ClaimSlot{Host: me.Host, Boot: me.Boot, Instance: me.Instance, HostName: me.HostName}
	for deadline := time.Now().Add(c.Patience); ; {
		err := c.try(ctx)
		var other rival
		if !errors.As(err, &other) {
			return c, err
		}
		if !time.Now().Before(deadline) {
			return c, s.refusal(other.SlotClaim)
		}
		// At random, or two hosts would meet again and again.
		if c.sleep(ctx, c.Wait/8+rand.N(c.Wait/2)) != nil {
			return c, s.refusal(other.SlotClaim)
		}
	}
}

// try raises the claim once. A rival is an error, and then this host's claim is down again.
func (c *claim) try(ctx context.Context) error {
	c.held = false
	began := time.Now()
	claims, err := c.s.Claims()
	if err != nil {
		return err
	}
	if other, found := c.other(claims); found {
		// Where that host waits for a claim that this one left, dead, neither would ever get in.
		if err := c.lowerLeft(claims); err != nil {
			return err
		}
		return rival{other}
	}
	if !c.Shared {
		return nil
	}
	slot, kept := c.choose(claims)
	c.slot = slot
	c.mine.Time, c.mine.Nonce = time.Now().UnixMilli(), 1+rand.Uint64N(1<<63)
	if err := c.s.writeSlot(slot, &c.mine); err != nil {
		return err
	}
	if !kept || time.Since(began) > c.Wait/2 {
		// To its end also when this host is told to stop: a claim that is left would have to be cleared by hand.
		if err := c.sleep(context.WithoutCancel(ctx), c.Wait); err != nil {
			return err
		}
	}
	err = c.verify()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if lerr := c.lower(); lerr != nil {
			return lerr
		}
	}
	return err
}

// verify reads all slots: this host's must be as it was raised, all others down.
func (c *claim) verify() error {
	at := time.Now()
	claims, err := c.s.Claims()
	if err != nil {
		return err
	}
	c.held = false
	for _, o := range claims {
		c.held = c.held || o.Slot == c.slot && o.Err == nil && o.ClaimSlot == c.mine
	}
	if other, found := c.other(claims); found {
		return rival{other}
	}
	if !c.held { // another host has taken the slot, and lowered it again
		return rival{SlotClaim{Slot: c.slot, ClaimSlot: c.mine}}
	}
	c.verified = at
	return nil
}

// late says that more time went by since the claim was verified than may.
func (c *claim) late() bool { return c.Shared && time.Since(c.verified) > c.Wait/2 }

// lower takes the claim back and keeps the slot for the next time. A slot that another host has taken is left alone.
func (c *claim) lower() error {
	if !c.held {
		return nil
	}
	down := c.mine
	down.Nonce = 0
	err := c.s.writeSlot(c.slot, &down)
	c.held = err != nil
	return err
}

// lowerLeft frees what an engine of this host that died had raised. Nobody knows whether it had waited for the slot.
func (c *claim) lowerLeft(claims []SlotClaim) error {
	for _, o := range claims {
		if c.Shared && o.Err == nil && o.Host == c.mine.Host && o.Nonce != 0 {
			if err := c.s.writeSlot(o.Slot, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// lowerDead frees what the dead host had raised when it died.
func (c *claim) lowerDead() error {
	_, err := c.s.ClearClaims(func(o SlotClaim) bool {
		return c.Shared && o.Err == nil && o.Nonce != 0 && c.dead != uuid.Nil && o.Boot == c.dead
	})
	if errors.Is(err, ErrNoClaim) {
		return nil
	}
	return err
}

// other finds a claim that is another host's and raised, or damaged: then nobody knows.
func (c *claim) other(claims []SlotClaim) (SlotClaim, bool) {
	for _, o := range claims {
		if o.Err != nil || o.Host != c.mine.Host && o.Nonce != 0 && (c.dead == uuid.Nil || o.Boot != c.dead) {
			return o, true
		}
	}
	return SlotClaim{}, false
}

// choose finds this host's slot; kept says that it is surely its own: it was lowered, so it had been waited for.
// Without one it is a free slot, or if there is none one that another host keeps.
func (c *claim) choose(claims []SlotClaim) (slot int, kept bool) {
	var used [cowfmt.ClaimSlots]bool
	for _, o := range claims {
		if o.Host == c.mine.Host {
			return o.Slot, o.Nonce == 0
		}
		used[o.Slot] = true
	}
	first := firstSlot(c.mine.Host)
	for i := range cowfmt.ClaimSlots {
		if slot := (first + i) % cowfmt.ClaimSlots; !used[slot] {
			return slot, false
		}
	}
	return first, false
}

func firstSlot(host uuid.UUID) int {
	h := fnv.New32a()
	_, _ = h.Write(host[:])
	return int(h.Sum32() % cowfmt.ClaimSlots)
}

// confirm is for a host that was late: the owner's record it wrote must be there still when nobody's can be on its
// way any more.
func (c *claim) confirm(ctx context.Context, me cowfmt.Owner) error {
	if err := c.sleep(context.WithoutCancel(ctx), c.Wait); err != nil {
		return err
	}
	now, err := Open(c.s.dev)
	if err != nil {
		return err
	}
	if o := now.Header().Owner; o == nil || *o != me {
		return fmt.Errorf("%s: %w: opening it took too long, and another host was quicker: try again", c.s.Name(), ErrClaimed)
	}
	return nil
}
