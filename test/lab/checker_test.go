package lab

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestWrong: what a checker found outranks that the kernel panicked afterwards, and what others said before is not its own.
func TestWrong(t *testing.T) {
	const panicked = "[   76.1] Kernel panic - not syncing: Fatal exception in interrupt\r\n"
	for _, w := range []struct {
		console  string
		panicked bool
		says     string // "": nothing is wrong
	}{
		{"flushed one 0 16.\r\n", false, ""},
		{panicked + "GUEST-UP\r\nflushed one 0 16.\r\n", false, ""},
		{"flushed one 0 16.\r\n" + panicked, true, "Fatal exception"},
		{"flushed one 0 16.\r\nchecker one: WRONG: read back slot 7\r\n" + panicked, false, "read back slot 7"},
		{"flushed one 0 16.\r\n" + panicked + "checker one: WRONG: read back slot 7\r\n", false, "read back slot 7"},
		{"flushed one 0 16.\r\nchecker another: WRONG: read back slot 7\r\n", false, ""},
	} {
		h := &Host{Dir: t.TempDir()}
		k := &Checker{CheckerConfig: CheckerConfig{Name: "one", Slots: 64, Seed: 1}, Guest: &Guest{Name: "g1", host: h}}
		must(t, os.MkdirAll(filepath.Dir(k.Guest.ConsolePath()), 0o755))
		must(t, os.WriteFile(k.Guest.ConsolePath(), []byte(w.console), 0o644))
		err := k.Wrong()
		if (err != nil) != (w.says != "") || errors.Is(err, ErrPanicked) != w.panicked || err != nil && !strings.Contains(err.Error(), w.says) {
			t.Errorf("%q: %v", w.console, err)
		}
	}
}
