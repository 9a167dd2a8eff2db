package libvirtx

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// AgentCommand has a driver send a command to the agent in a guest and wait this many seconds for its answer. Errors are
// Known. libvirt asks the agent whether it listens first, for up to five seconds more.
type AgentCommand func(ctx context.Context, d Domain, command string, seconds int) (answer string, err error)

// Time-outs of what the agent is asked. A freeze has the guest's hooks run and its caches written.
const (
	freezeTimeout = 40 * time.Second
	agentTimeout  = 5 * time.Second
	agentListens  = 6 * time.Second // what libvirt takes to find that an agent does not listen, and to tell
)

// Freeze is Conn's, for the drivers. It goes by the agent's own commands rather than by virDomainFSFreeze: that one waits
// without end for a guest's hook unless the domain is given a time-out (virDomainAgentSetResponseTimeout), which then
// stays and is everybody's; and libvirt's Go binding does not tell how many file systems were frozen. libvirt notes, once
// a start of the guest, that the agent was spoken to directly ("custom guest agent control commands issued").
func Freeze(ctx context.Context, d Domain, agent AgentCommand) (int, error) {
	n, err := counted(ctx, d, agent, "guest-fsfreeze-freeze", freezeTimeout)
	if err == nil || unheard(err) {
		return n, err
	}
	if frozen, serr := Frozen(ctx, d, agent); serr == nil && frozen && !errors.Is(err, ErrFrozen) { // older agents do not say so
		err = fmt.Errorf("%w: %w", ErrFrozen, err)
	}
	return 0, err
}

// unheard says that asking the agent again is of no use now.
func unheard(err error) bool {
	for _, e := range []error{ErrNoAgent, ErrAgentHangs, ErrNotRunning, ErrNoDomain, ErrGone, ErrNoAnswer} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Thaw is Conn's, for the drivers. The agent is sent the command whatever it says of itself: one that was started anew
// may not know what the one before it froze.
func Thaw(ctx context.Context, d Domain, agent AgentCommand) (int, error) {
	return counted(ctx, d, agent, "guest-fsfreeze-thaw", agentTimeout)
}

// Frozen is Conn's, for the drivers.
func Frozen(ctx context.Context, d Domain, agent AgentCommand) (bool, error) {
	var status string
	if err := ask(ctx, d, agent, "guest-fsfreeze-status", agentTimeout, &status); err != nil {
		return false, err
	}
	switch status {
	case "frozen":
		return true, nil
	case "thawed":
		return false, nil
	}
	return false, fmt.Errorf("guest agent of %s: guest-fsfreeze-status: it answers %q", d.Name, status)
}

// counted asks for what is answered with a number of file systems.
func counted(ctx context.Context, d Domain, agent AgentCommand, command string, timeout time.Duration) (n int, err error) {
	if err := ask(ctx, d, agent, command, timeout, &n); err != nil {
		return 0, err
	}
	if n < 0 {
		return 0, fmt.Errorf("guest agent of %s: %s: it answers %d file systems", d.Name, command, n)
	}
	return n, nil
}

// ask sends a command and reads the answer. The answer is the guest's and may be anything.
func ask(ctx context.Context, d Domain, agent AgentCommand, command string, timeout time.Duration, into any) error {
	text, err := agent(ctx, d, `{"execute":"`+command+`"}`, seconds(ctx, timeout))
	if err != nil {
		return err
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
	}
	err = json.Unmarshal([]byte(text), &answer)
	if err == nil {
		err = json.Unmarshal(answer.Return, into)
	}
	if err != nil {
		return fmt.Errorf("guest agent of %s: %s: no answer that makes sense: %w", d.Name, command, err)
	}
	return nil
}

// seconds is the agent's time: less than the context's, so that libvirt's own word about the agent arrives.
func seconds(ctx context.Context, timeout time.Duration) int {
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline)-agentListens)
	}
	return max(1, int(timeout/time.Second))
}
