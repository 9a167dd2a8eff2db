package store

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// # The stack
//
//	from \ to   active            broken                 out of the stack
//	pending     the cut was made  a forced takeover      the cut is void
//	active      (its cursor)      a write goes past it   the job has ended
//	broken      never             -                      the job has ended
//
// A change is in both header copies when its call returns nil. After an error it may be in either or none, and is to
// be made again. Nothing here looks at the snapshot's store.

var (
	// ErrNoSnapshot says that a volume's stack doesn't list a snapshot.
	ErrNoSnapshot = errors.New("snapshot is not in the stack of the volume")
	// ErrSnapshotChange says that a stack entry can't become what it is to be.
	ErrSnapshotChange = errors.New("a snapshot can't be changed that way")
)

// AddSnapshot puts a pending snapshot on top of the stack, durably. It is ErrSnapshotChange for one that is there.
func (s *Store) AddSnapshot(entry cowfmt.StackEntry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mayUpdate(); err != nil {
		return err
	}
	return s.changeStack(func(stack []cowfmt.StackEntry) ([]cowfmt.StackEntry, error) {
		switch {
		case findEntry(stack, entry.UUID) >= 0:
			return nil, fmt.Errorf("%w: %v is in the stack already", ErrSnapshotChange, entry.UUID)
		case entry.Kind != cowfmt.StackSnapshot || entry.State != cowfmt.StackPending || entry.Cursor != 0:
			return nil, fmt.Errorf("%w: it begins pending, with nothing released: %v", ErrSnapshotChange, entry)
		case len(stack) == cowfmt.MaxStack:
			return nil, fmt.Errorf("%w: the volume has %d snapshots and trackers, and no room for more", ErrSnapshotChange, len(stack))
		}
		return append(stack, entry), nil
	})
}

// SetSnapshot changes an entry of the stack, durably: its state as the table above has it, its cursor up, where its
// store is; nothing else. Otherwise it is ErrSnapshotChange, and ErrNoSnapshot for one that is not there.
func (s *Store) SetSnapshot(id uuid.UUID, change func(*cowfmt.StackEntry)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mayUpdate(); err != nil {
		return err
	}
	return s.setSnapshot(id, change)
}

// setSnapshot is SetSnapshot without asking who this is. Called with mu held.
func (s *Store) setSnapshot(id uuid.UUID, change func(*cowfmt.StackEntry)) error {
	return s.changeStack(func(stack []cowfmt.StackEntry) ([]cowfmt.StackEntry, error) {
		i := findEntry(stack, id)
		if i < 0 {
			return nil, fmt.Errorf("%w: %v", ErrNoSnapshot, id)
		}
		was := stack[i]
		change(&stack[i])
		return stack, mayBecome(was, stack[i])
	})
}

// RemoveSnapshot takes a snapshot out of the stack, durably. It is ErrNoSnapshot for one that is not there.
func (s *Store) RemoveSnapshot(id uuid.UUID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mayUpdate(); err != nil {
		return err
	}
	return s.removeSnapshot(id)
}

// removeSnapshot is RemoveSnapshot without asking who this is. Called with mu held.
func (s *Store) removeSnapshot(id uuid.UUID) error {
	return s.changeStack(func(stack []cowfmt.StackEntry) ([]cowfmt.StackEntry, error) {
		i := findEntry(stack, id)
		if i < 0 {
			return nil, fmt.Errorf("%w: %v", ErrNoSnapshot, id)
		}
		return slices.Delete(stack, i, i+1), nil
	})
}

// mayBecome says why a stack entry can't become another one.
func mayBecome(was, is cowfmt.StackEntry) error {
	same := is
	same.State, same.Cursor, same.Locator = was.State, was.Cursor, was.Locator
	switch {
	case same != was:
		return fmt.Errorf("%w: %v would become %v", ErrSnapshotChange, was, is)
	case was.State != is.State && (was.State == cowfmt.StackBroken || is.State == cowfmt.StackPending):
		return fmt.Errorf("%w: %v is %s and can't be made %s", ErrSnapshotChange, was.UUID,
			cowfmt.StackStateName(was.State), cowfmt.StackStateName(is.State))
	case is.Cursor < was.Cursor:
		return fmt.Errorf("%w: the cursor of %v is at %d and can't go back to %d", ErrSnapshotChange, was.UUID, was.Cursor, is.Cursor)
	}
	return nil
}

// breakStack marks all of a stack broken. A dead owner's late write could clear a flag in a snapshot's table, so that
// nothing that is read from it can be trusted after a forced takeover.
func breakStack(h *cowfmt.Header) {
	for i := range h.Stack {
		h.Stack[i].State = cowfmt.StackBroken
	}
}

func findEntry(stack []cowfmt.StackEntry, id uuid.UUID) int {
	return slices.IndexFunc(stack, func(e cowfmt.StackEntry) bool { return e.UUID == id })
}

// changeStack is update for the stack alone: change gets a copy, and may refuse. Called with mu held.
func (s *Store) changeStack(change func(stack []cowfmt.StackEntry) ([]cowfmt.StackEntry, error)) error {
	stack, err := change(slices.Clone(s.Header().Stack))
	if err != nil {
		return fmt.Errorf("%s: %w", s.Name(), err)
	}
	return s.update(func(h *cowfmt.Header) { h.Stack = stack })
}
