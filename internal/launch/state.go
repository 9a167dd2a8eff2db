package launch

import (
	"context"
	"fmt"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/dbus"
)

// state is what systemd knows of a unit.
type state struct {
	load   string // loaded, not-found, masked, …
	active string // active, activating, deactivating, inactive, failed
	main   int    // process, 0 for none
	last   int    // the last one that was it
	result string // success, exit-code, signal, core-dump, timeout, start-limit-hit, …
	code   int    // siginfo's: exited, killed, dumped
	status int    // exit status or signal
	text   string // what it said last with STATUS=; of an engine that failed its error
}

func stateOf(ctx context.Context, c *dbus.Conn, name string) (state, error) {
	p, err := c.GetAllPropertiesContext(ctx, name)
	if err != nil {
		return state{}, fmt.Errorf("%s: %w", name, err)
	}
	var s state
	s.load, _ = p["LoadState"].(string)
	s.active, _ = p["ActiveState"].(string)
	s.result, _ = p["Result"].(string)
	s.text, _ = p["StatusText"].(string)
	s.main = number(p["MainPID"])
	s.last = number(p["ExecMainPID"])
	s.code = number(p["ExecMainCode"])
	s.status = number(p["ExecMainStatus"])
	if s.load != "loaded" {
		return s, fmt.Errorf("%w: unit %s is %s", ErrNoSystemd, name, s.load)
	}
	return s, nil
}

// unitOf is the engine's unit that a process is in, "" for none.
func unitOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	return unitOfGroups(string(b))
}

// unitOfGroups reads what /proc/PID/cgroup says: a line ID:CONTROLLERS:PATH for each hierarchy.
func unitOfGroups(groups string) string {
	for line := range strings.Lines(groups) {
		name := path.Base(strings.TrimSpace(line))
		if strings.HasPrefix(name, unitPrefix) && strings.HasSuffix(name, unitSuffix) {
			return name
		}
	}
	return ""
}

// number is 0 for a property that is not there.
func number(v any) int {
	switch n := v.(type) {
	case uint32:
		return int(n)
	case int32:
		return int(n)
	}
	return 0
}

// cldExited is siginfo's code of a process that called exit.
const cldExited = 1

// ended says how the last process ended.
func (s state) ended() string {
	how := "exit status 0"
	switch {
	case s.last == 0:
		how = "no process was started"
	case s.code == cldExited:
		how = fmt.Sprintf("exit status %d", s.status)
		if s.status != 0 && s.text != "" {
			how += ": " + s.text
		}
	case s.code != 0:
		how = "signal: " + syscall.Signal(s.status).String()
	}
	if s.result != "" && s.result != "success" && s.result != "exit-code" && s.result != "signal" {
		how += " (" + s.result + ")"
	}
	return how
}
