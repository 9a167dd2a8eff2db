package cowfmt

import (
	"fmt"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// What a header can hold, in bytes unless it says otherwise. With everything at its limit a header takes
// 55328 bytes of its 64 KiB; the rest is for records of newer programs.
const (
	MaxName        = 64
	MaxAddress     = 1024 // of a locator
	MaxWWID        = 256
	MaxHostName    = 253 // as in DNS
	MaxHostAddress = 512 // of a host's daemon
	MaxGrants      = 16  // grants
	MaxStack       = 32  // snapshots and trackers
	MaxProgress    = 4096
)

// ValidName returns ErrInvalid unless a volume may have this name. It becomes part of a path and of the
// name of a systemd unit: 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit.
func ValidName(name string) error {
	ok := name != "" && len(name) <= MaxName
	for i := 0; ok && i < len(name); i++ {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.' || c == '_' || c == '-':
			ok = i > 0
		default:
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("%w volume name %q: use 1 to %d of A-Z a-z 0-9 . _ - with a letter or digit first", ErrInvalid, name, MaxName)
	}
	return nil
}

func checkUUID(what string, id uuid.UUID) error {
	if id == uuid.Nil {
		return fmt.Errorf("%w %s: the UUID is zero", ErrInvalid, what)
	}
	return nil
}

// checkText also refuses control characters: these strings end up on terminals and in logs.
func checkText(what, s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("%w %s: %d bytes, at most %d", ErrInvalid, what, len(s), limit)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%w %s %q: not UTF-8", ErrInvalid, what, s)
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return fmt.Errorf("%w %s %q: control characters", ErrInvalid, what, s)
		}
	}
	return nil
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
