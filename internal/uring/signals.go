package uring

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A request that would block is a worker thread's of the kernel's, which the ring's thread makes. A signal that is pending just then
// has that fail; it is tried again, a few times, and then the request is cancelled (ECANCELED), or was seen (Linux 6.18) to stay
// for ever. Go sends its threads signals all the time, to preempt them. So a ring's thread gets none but those of its own doing.

// blockSignals blocks all others on the calling thread, and returns what was blocked before.
func blockSignals() (before unix.Sigset_t, err error) {
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	for _, s := range []unix.Signal{unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGABRT, unix.SIGSYS} {
		all.Val[(s-1)/64] &^= 1 << ((s - 1) % 64)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, &before); err != nil {
		return before, fmt.Errorf("block signals: %w", err)
	}
	return before, nil
}

func unblockSignals(before *unix.Sigset_t) { _ = unix.PthreadSigmask(unix.SIG_SETMASK, before, nil) }
