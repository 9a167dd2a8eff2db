package archive

import (
	"context"
	"errors"
	"fmt"
)

// judge gives an error of writing one of our names, where it has none. Kopia does not say why it fails; what it was told by the
// storage is within, and says it better than what kopia puts around it.
func (s *storage) judge(err error) error {
	if err == nil || named(err) {
		for inner := errors.Unwrap(err); errors.Is(inner, ErrNoSpace) || errors.Is(inner, ErrUnreachable); inner = errors.Unwrap(inner) {
			err = inner
		}
		return err
	}
	if final, is := s.final(err); is && named(final) {
		return final
	}
	return err
}

// damaged is judge for what was read: what could be read, but is not as it was written, is damaged.
func (s *storage) damaged(err error) error {
	if err = s.judge(err); err == nil || named(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// named tells whether an error says what it is.
func named(err error) bool {
	for _, is := range []error{
		ErrUnreachable, ErrNoSpace, ErrDamaged, ErrNotFound, ErrNotOwner, ErrFinished, ErrPassphrase, context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}
