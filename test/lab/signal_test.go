package lab

import (
	"fmt"
	"syscall"
	"testing"
)

// TestStopAndGoOn: what is stopped stands still, however soon after it was told to go on.
func TestStopAndGoOn(t *testing.T) {
	h := For(t, Config{})
	p, err := h.Start("sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if s := processState(fmt.Sprintf("/proc/%d", p.PID)); s != 'T' {
			t.Fatalf("stopped: %c", s)
		}
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
}
