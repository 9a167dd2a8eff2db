// Package handover is the protocol by which a volume goes from one host to another while its guest runs: the state
// machines of the host that gives it and of the one that receives it, as tables. Engines run these tables, and the model
// test explores them. docs/MIGRATION.md shows them, with the reasons.
//
// Each host has a migration slot in the store's header area that only it writes (docs/FORMAT.md, "Handing over"). The
// giver's says whether it may write, the receiver's whether it wants to. Whoever wants to begin to write first makes
// that durable in its own slot and then reads the other's, so that of two who want to at least one sees the other:
//
//   - the receiver writes only after its ACTIVE is durable and a later read of the giver's slot shows SEALED or YIELD;
//   - the giver writes only in OPEN, and comes back to it only by making RECLAIM durable and then reading a slot of the
//     receiver that is not ACTIVE;
//   - the header is the giver's to write until it names the receiver in it, which is the last it writes at all;
//   - once the giver's guest runs on here for good, the migration having failed, the receiver's is another guest even if it
//     runs: the giver's slot says KEPT, and this grant gives the receiver nothing any more.
//
// Nothing here does I/O or knows of time.
package handover

// State is where a host stands. A giver's Open, Sealed, Reclaim, Yield and Kept and a receiver's Idle and Active are what its
// slot says, so that an engine that died is gone on with by the next one.
type State uint8

// The states of the giver, then those of the receiver.
const (
	Alone   State = iota + 1 // the owner, nothing granted
	Open                     // granted, and may write
	Sealed                   // has drained, writes no more
	Reclaim                  // wants to write again, must read the receiver's slot
	Yield                    // wanted to, but the receiver was active
	Kept                     // granted, and may write: the guest has stayed here, the receiver gets nothing by this grant
	Given                    // the header names the receiver: this host has nothing to say any more

	Idle   // has the volume open, may not write
	Active // wants to write, and waits until the giver has stopped
	Writer // may write; the header is the giver's still
	Owner  // the header names it
	Closed // has the volume open no more
)

var stateNames = map[State]string{
	Alone: "alone", Open: "open", Sealed: "sealed", Reclaim: "reclaim", Yield: "yield", Kept: "kept", Given: "given",
	Idle: "idle", Active: "active", Writer: "writer", Owner: "owner", Closed: "closed",
}

// String is the state's name, as in docs/MIGRATION.md and the control API.
func (s State) String() string { return stateNames[s] }

// MayWrite says whether the guest's writes go to the disk in this state. All others hold them.
func (s State) MayWrite() bool {
	return s == Alone || s == Open || s == Kept || s == Writer || s == Owner
}

// Slot is what the other host's migration slot says of this grant, by a read that was issued after this host's own slot
// was last made durable.
type Slot uint8

// What the other's slot says.
const (
	Unread      Slot = iota // not read since
	Absent                  // free, or about another grant
	SlotIdle                // the receiver's
	SlotActive              // the receiver's
	SlotOpen                // the giver's
	SlotSealed              // the giver's
	SlotReclaim             // the giver's
	SlotYield               // the giver's
	SlotKept                // the giver's
)

// Guest is what is known of the domain on this host, by a question to libvirt that was asked after the engine reached its state,
// and after the last write came that is held; and that it is stopped, after the last write came at all, held or not (whoever
// seals looks at that after it holds writes). What was known before is forgotten then: a host decides on it between two guests
// that may both be able to run, so an old answer is as bad as an old read of a slot.
type Guest uint8

// What is known of the domain.
const (
	GuestUnknown Guest = iota // nobody said, or too long ago
	GuestRuns                 // here, and for good: neither arriving nor leaving
	GuestLeaves               // runs here, and a migration to another host is going on, or may be about to begin
	GuestStopped              // suspended by the migration, arriving, or not there
)

// Facts are what a host knows when it decides.
type Facts struct {
	Peer       Slot
	Guest      Guest
	Clients    bool // somebody is connected to the engine
	Waits      bool // a request of the guest is held
	Settled    bool // receiver: the guest has been running here for a while
	Asked      bool // giver: another host is to be granted
	PeerClosed bool // giver: the receiver has closed the volume, or never will open it, or is proven dead
	PeerDead   bool // receiver: the giver is proven dead; Peer was read after the proof came
	Ready      bool // receiver: it needs no header write to write data
	Mine       bool // receiver: the header names it as the owner
	Closing    bool // this engine is to end
}

// Action is what is to be done, durably, before the next state is reached. A failure leaves the state as it is.
type Action uint8

// The actions of the giver, then those of the receiver.
const (
	Nothing    Action = iota
	DoGrant           // stop hydration, cache off, commit; slot OPEN; header: grant
	DoSeal            // hold writes, drain, flush; slot SEALED
	DoReclaim         // slot RECLAIM
	DoYield           // slot YIELD
	DoReopen          // slot OPEN; let the held requests go
	DoKeep            // slot KEPT; let the held requests go
	DoEndGrant        // header: no grant; read the receiver's slot: not absent: put the grant back; absent: slot free, cache on
	DoHandOver        // header: owner is the receiver, epoch + 1, no grant; fail the held requests

	DoActivate // slot ACTIVE
	DoWrite    // let the held requests go
	DoOwn      // take over the header; cache on, hydration on
	DoTakeOver // forced takeover through the other table area; then as DoOwn
	DoClose    // slot free; read the header again: named in it: take it over and release it
	DoRelease  // clean close as the owner
	DoLeave    // close, and write nothing
)

// Rule is one line of a table: in State, if When holds, Do and then be in Next. Of several the first counts.
type Rule struct {
	State State
	Event string // When, in words
	When  func(Facts) bool
	Do    Action
	Next  State
}

// Next finds what to do, Nothing if no rule holds.
func Next(table []Rule, s State, f Facts) Rule {
	for _, r := range table {
		if r.State == s && r.When(f) {
			return r
		}
	}
	return Rule{State: s, Do: Nothing, Next: s}
}
