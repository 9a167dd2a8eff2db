package iscsi

import (
	"os/exec"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev/reserve"
)

// capabilities are what engines have here: those of systemd/virt-cow-volume@.service, and what docs/OPERATIONS.md adds for
// reservations.
var capabilities = []int{unix.CAP_DAC_OVERRIDE, unix.CAP_CHOWN, unix.CAP_IPC_LOCK, unix.CAP_SYS_RAWIO, unix.CAP_SYS_ADMIN}

// start starts a command bounded to some capabilities.
func start(cmd *exec.Cmd, capabilities []int) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		for c := range unix.CAP_LAST_CAP + 1 {
			if slices.Contains(capabilities, c) {
				continue
			}
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
				started <- err
				return
			}
		}
		started <- cmd.Start()
	}()
	return <-started
}

// Each of the capabilities that the manual asks for is needed, by this kernel at least; without one nothing happens to the LUN.
func testCapabilities(t *testing.T, l *lun) {
	l.a.createStore(t)
	before := l.contents(t)
	for _, without := range []int{unix.CAP_SYS_RAWIO, unix.CAP_SYS_ADMIN} {
		fewer := slices.DeleteFunc(slices.Clone(capabilities), func(c int) bool { return c == without })
		l.a.refuses(t, fewer, l.a.serveArgs(t), "the engine needs CAP_SYS_RAWIO for reservations, and before Linux 6.5 CAP_SYS_ADMIN")
	}
	if l.contents(t) != before {
		t.Error("the LUN changed")
	}
	if s := l.a.reservations(t); s.Type != reserve.TypeNone || len(s.Keys) != 0 {
		t.Errorf("the LUN is reserved: %+v", s)
	}
}
