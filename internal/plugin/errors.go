package plugin

import (
	"errors"
	"fmt"
)

// Errors.
var (
	ErrClosed     = errors.New("plugins are no longer run")
	ErrNoProvider = errors.New("no such provider")
	ErrNotFound   = errors.New("the provider has no store of this name")
	ErrProvider   = errors.New("provider failed")
	ErrRefused    = errors.New("refused") // a file that must not be run
)

// VetoError says which plugin did not want something done, and why.
type VetoError struct {
	Plugin string // its name
	Event  string
	Volume string
	Reason string // one line
}

func (e *VetoError) Error() string {
	return fmt.Sprintf("plugin %s does not allow %s of volume %s: %s", e.Plugin, e.Event, e.Volume, e.Reason)
}
