package cowfmt

import (
	"fmt"

	"github.com/google/uuid"
)

// Validate returns ErrInvalid, naming the field, unless the header is one a store can have. Features are
// not its business: see Features.Writable.
func (h *Header) Validate() error {
	err := firstOf(ValidName(h.Name), checkUUID("UUID", h.UUID), checkSizes(h.Role, h.Size, h.ChunkSize))
	if err == nil {
		err = firstOf(h.Layout.check(h.Role, h.Size, h.ChunkSize), h.checkTable(), h.checkBases(), h.checkOwner(),
			h.checkGrants(), h.checkStack(), h.checkSnapshot(), h.checkRest())
	}
	if err != nil {
		return fmt.Errorf("header of %q: %w", h.Name, err)
	}
	return nil
}

func (h *Header) checkTable() error {
	switch {
	case h.Cache != CacheOn && h.Cache != CacheOff:
		return fmt.Errorf("%w cache mode %d", ErrInvalid, h.Cache)
	case h.ActiveTable != 0 && (h.ActiveTable != 1 || h.Role == RoleState):
		return fmt.Errorf("%w active table %d", ErrInvalid, h.ActiveTable)
	case h.TableEpoch > h.Epoch:
		return fmt.Errorf("%w table epoch %d: the header's is %d", ErrInvalid, h.TableEpoch, h.Epoch)
	case h.CutLoose && h.Role != RoleClone:
		return fmt.Errorf("%w: only a clone is cut loose, not a %v", ErrInvalid, h.Role)
	case int64(len(h.TableGroups)) > divUp(h.Layout.TableSectors, SectorsPerGroup*8):
		return fmt.Errorf("%w table groups: %d bytes for %d groups", ErrInvalid, len(h.TableGroups), h.Groups())
	}
	for g := h.Groups(); g < 8*len(h.TableGroups); g++ {
		if h.GroupReady(g) {
			return fmt.Errorf("%w: table group %d is ready, but only %d are in use", ErrInvalid, g, h.Groups())
		}
	}
	return nil
}

// checkBases checks the master and the origin. A clone without a master is a disk that begins empty. A raw file that is written to has no identity, so an
// origin may go without; a master never changes and can always be known by samples.
func (h *Header) checkBases() error {
	switch {
	case h.Role == RoleState && h.Master != nil:
		return fmt.Errorf("%w: a state store has no master", ErrInvalid)
	case h.Role == RoleClone && h.Origin != nil:
		return fmt.Errorf("%w: a clone has no origin", ErrInvalid)
	case h.Role != RoleClone && h.Origin == nil:
		return fmt.Errorf("%w: a %v store needs an origin", ErrInvalid, h.Role)
	case (h.Master == nil) != (h.MasterIdentity == nil):
		return fmt.Errorf("%w: a master and its identity go together", ErrInvalid)
	case h.Origin == nil && h.OriginIdentity != nil:
		return fmt.Errorf("%w: identity of an origin that isn't named", ErrInvalid)
	}
	return firstOf(h.Master.check("master"), h.MasterIdentity.check("master"), h.Origin.check("origin"), h.OriginIdentity.check("origin"))
}

func (l *Locator) check(what string) error {
	switch {
	case l == nil:
		return nil
	case l.Kind < LocatorRaw || l.Kind > LocatorArchive:
		return fmt.Errorf("%w %s locator: kind %d", ErrInvalid, what, l.Kind)
	case l.Address == "":
		return fmt.Errorf("%w %s locator: no address", ErrInvalid, what)
	}
	return checkText(what+" address", l.Address, MaxAddress)
}

// check refuses fields that the kind has no use for: they would be lost.
func (id *Identity) check(what string) error {
	if id == nil {
		return nil
	}
	only := Identity{Kind: id.Kind, Size: id.Size}
	switch {
	case id.Kind == IdentityStore && id.UUID != uuid.Nil:
		only.UUID, only.Opens = id.UUID, id.Opens
	case id.Kind == IdentityWWID && id.WWID != "":
		only.WWID = id.WWID
	case id.Kind == IdentitySamples:
		only.Digest = id.Digest
	default:
		return fmt.Errorf("%w %s identity: kind %d, UUID %v, WWID %q", ErrInvalid, what, id.Kind, id.UUID, id.WWID)
	}
	switch {
	case *id != only:
		return fmt.Errorf("%w %s identity: fields of another kind than %v are set", ErrInvalid, what, id.Kind)
	case id.Size <= 0 || id.Size > MaxSize:
		return fmt.Errorf("%w %s identity: size %d", ErrInvalid, what, id.Size)
	}
	return checkText(what+" WWID", id.WWID, MaxWWID)
}

// checkOwner wants all three UUIDs: a missing one would look like another's missing one.
func (h *Header) checkOwner() error {
	o := h.Owner
	if o == nil {
		return nil
	}
	return firstOf(checkUUID("owner's host", o.Host), checkUUID("owner's boot id", o.Boot), checkUUID("owner's instance", o.Instance),
		checkText("owner's host name", o.HostName, MaxHostName), checkText("owner's address", o.Address, MaxHostAddress))
}

func (h *Header) checkGrants() error {
	if len(h.Grants) > MaxGrants {
		return fmt.Errorf("%w: %d grants, at most %d", ErrInvalid, len(h.Grants), MaxGrants)
	}
	for i, g := range h.Grants {
		if err := firstOf(checkUUID("grant", g.ID), checkUUID("grant's host", g.Host), checkUUID("grant's boot id", g.Boot),
			checkText("grant's host name", g.HostName, MaxHostName), checkText("grant's address", g.Address, MaxHostAddress)); err != nil {
			return err
		}
		if g.Slot >= MigrationSlots {
			return fmt.Errorf("%w grant %v: slot %d of %d", ErrInvalid, g.ID, g.Slot, MigrationSlots)
		}
		for _, o := range h.Grants[:i] {
			if o.ID == g.ID || o.Host == g.Host || o.Slot == g.Slot {
				return fmt.Errorf("%w: grants %v and %v share an ID, a host or a slot", ErrInvalid, o, g)
			}
		}
	}
	return nil
}

func (h *Header) checkStack() error {
	switch {
	case len(h.Stack) > MaxStack:
		return fmt.Errorf("%w: %d snapshots and trackers, at most %d", ErrInvalid, len(h.Stack), MaxStack)
	}
	for i, e := range h.Stack {
		switch {
		case e.Kind != StackSnapshot && e.Kind != StackTracker:
			return fmt.Errorf("%w stack entry %v: kind %d", ErrInvalid, e.UUID, e.Kind)
		case e.State < StackActive || e.State > StackPending:
			return fmt.Errorf("%w stack entry %v: state %d", ErrInvalid, e.UUID, e.State)
		case e.OnError > OnErrorBreakGuestWrite:
			return fmt.Errorf("%w stack entry %v: on-error policy %d", ErrInvalid, e.UUID, e.OnError)
		case e.Cursor < 0 || e.Cursor > h.Size:
			return fmt.Errorf("%w stack entry %v: cursor %d of %d bytes", ErrInvalid, e.UUID, e.Cursor, h.Size)
		}
		if err := firstOf(checkUUID("stack entry", e.UUID), e.Locator.check("stack entry")); err != nil {
			return err
		}
		for _, o := range h.Stack[:i] {
			if o.UUID == e.UUID {
				return fmt.Errorf("%w: stack entry %v is there twice", ErrInvalid, e.UUID)
			}
		}
	}
	return nil
}

// checkSnapshot checks what only a snapshot store has, and what it never has: it belongs to its volume, and whoever may
// write that may write it. Its header is never written after it was made, so all of its table is initialised then.
func (h *Header) checkSnapshot() error {
	if h.Role != RoleSnapshot {
		if h.Cut != uuid.Nil {
			return fmt.Errorf("%w: a %v store has no cut", ErrInvalid, h.Role)
		}
		return nil
	}
	switch {
	case h.Origin == nil || h.Origin.Kind != LocatorStore || h.OriginIdentity == nil || h.OriginIdentity.Kind != IdentityStore:
		return fmt.Errorf("%w: the origin of a snapshot must be a volume's store, known by its UUID", ErrInvalid)
	case h.Master != nil && h.Layout.Frozen == 0:
		return fmt.Errorf("%w: a snapshot without a frozen table has no master", ErrInvalid)
	case h.Owner != nil || len(h.Grants) > 0 || len(h.Stack) > 0:
		return fmt.Errorf("%w: a snapshot store has no owner, grants or stack: those are its volume's", ErrInvalid)
	}
	for g := range h.Groups() {
		if !h.GroupReady(g) {
			return fmt.Errorf("%w: table group %d of a snapshot store is not initialised", ErrInvalid, g)
		}
	}
	return checkUUID("cut", h.Cut)
}

func (h *Header) checkRest() error {
	switch {
	case h.Progress.Kind == 0 && len(h.Progress.Data) > 0:
		return fmt.Errorf("%w progress: data without a kind", ErrInvalid)
	case len(h.Progress.Data) > MaxProgress:
		return fmt.Errorf("%w progress: %d bytes, at most %d", ErrInvalid, len(h.Progress.Data), MaxProgress)
	}
	for _, r := range h.Extra {
		if r.Type <= lastKnownRecord || r.Flags&RecordCritical != 0 {
			return fmt.Errorf("%w extra record: type %d, flags %#x", ErrInvalid, r.Type, r.Flags)
		}
	}
	return nil
}
