package main

import (
	"errors"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/serve"
	"github.com/virt-cow/virt-cow/internal/store"
)

// The exit codes, the same for all commands.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitDegraded = 3 // done, but not all of it as it should be
	exitLocked   = 4 // skipped: in use
	exitVerify   = 5 // verification failed
)

// exitError is an error with its exit code.
type exitError struct {
	error
	code int
}

func (e exitError) Unwrap() error { return e.error }

func exitCode(err error) int {
	var e exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &e):
		return e.code
	case errors.Is(err, serve.ErrSpec):
		return exitUsage
	case errors.Is(err, blockdev.ErrLocked), errors.Is(err, store.ErrOwned), errors.Is(err, store.ErrClaimed):
		return exitLocked
	}
	return exitFailed
}
