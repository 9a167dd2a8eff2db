package libvirtx

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// agent answers commands from a map and remembers what it was asked. What is no answer is an error.
type agent struct {
	answers map[string]any
	asked   []string
	seconds int
}

func (a *agent) command(_ context.Context, _ Domain, command string, seconds int) (string, error) {
	name := strings.TrimSuffix(strings.TrimPrefix(command, `{"execute":"guest-fsfreeze-`), `"}`)
	a.asked = append(a.asked, name)
	a.seconds = seconds
	if err, ok := a.answers[name].(error); ok {
		return "", err
	}
	return fmt.Sprint(a.answers[name]), nil
}

func TestFreezeAsksWhy(t *testing.T) {
	disabled := errors.New("The command guest-fsfreeze-freeze has been disabled for this instance") // as agents before 7.0 say it
	for _, c := range []struct {
		freeze any
		status any
		want   error // nil for one that is none of ours
		asked  int
	}{
		{disabled, `{"return":"frozen"}`, ErrFrozen, 2},
		{disabled, `{"return":"thawed"}`, disabled, 2},
		{disabled, ErrAgentHangs, disabled, 2},
		{ErrHook, `{"return":"thawed"}`, ErrHook, 2},
		{ErrNoAgent, nil, ErrNoAgent, 1},
		{ErrAgentHangs, nil, ErrAgentHangs, 1},
		{ErrNoAnswer, nil, ErrNoAnswer, 1},
		{ErrGone, nil, ErrGone, 1},
	} {
		a := agent{answers: map[string]any{"freeze": c.freeze, "status": c.status}}
		if n, err := Freeze(t.Context(), Domain{Name: "d"}, a.command); n != 0 || !errors.Is(err, c.want) || errors.Is(err, ErrFrozen) != (c.want == ErrFrozen) || len(a.asked) != c.asked {
			t.Errorf("%v: %d %v, asked %v", c.freeze, n, err, a.asked)
		}
	}
}

// TestAnswersOfAGuest: what a guest answers is believed only if it makes sense, and never harms.
func TestAnswersOfAGuest(t *testing.T) {
	ctx, d := t.Context(), Domain{Name: "d"}
	for _, answer := range []string{"", "x", "{}", "[]", `{"return":{}}`, `{"return":-1}`, `{"return":1.5}`, `{"return":99999999999999999999}`, `{"return":"1"}`, `{"error":{}}`} {
		a := agent{answers: map[string]any{"freeze": answer, "thaw": answer, "status": answer}}
		if _, err := Freeze(ctx, d, a.command); err == nil || !strings.Contains(err.Error(), "agent of d") {
			t.Errorf("freeze %q: %v", answer, err)
		}
		if _, err := Thaw(ctx, d, a.command); err == nil {
			t.Errorf("thaw %q", answer)
		}
		if _, err := Frozen(ctx, d, a.command); err == nil {
			t.Errorf("status %q", answer)
		}
	}
	a := agent{answers: map[string]any{"freeze": `{"return":3}`, "thaw": `{"return":2}`}}
	if n, err := Freeze(ctx, d, a.command); n != 3 || err != nil {
		t.Error(n, err)
	}
	if n, err := Thaw(ctx, d, a.command); n != 2 || err != nil || !slices.Equal(a.asked, []string{"freeze", "thaw"}) {
		t.Error(n, err, a.asked)
	}
}

func TestAgentEndsBeforeTheContext(t *testing.T) { synctest.Test(t, agentEndsBeforeTheContext) }

func agentEndsBeforeTheContext(t *testing.T) {
	for left, want := range map[time.Duration][2]int{0: {1, 1}, 9900 * time.Millisecond: {3, 3}, 30*time.Second + 900*time.Millisecond: {24, 5}, time.Hour: {40, 5}} {
		ctx, cancel := context.WithTimeout(t.Context(), left)
		a := agent{answers: map[string]any{"freeze": `{"return":1}`, "thaw": `{"return":1}`}}
		Freeze(ctx, Domain{}, a.command)
		freeze := a.seconds
		Thaw(ctx, Domain{}, a.command)
		if got := [2]int{freeze, a.seconds}; got != want {
			t.Errorf("%s left: %v seconds", left, got)
		}
		cancel()
	}
	a := agent{answers: map[string]any{"freeze": `{"return":1}`}}
	Freeze(t.Context(), Domain{}, a.command)
	if a.seconds != 40 {
		t.Error(a.seconds)
	}
	if limit := time.Duration(a.seconds)*time.Second + agentListens; limit >= CallTimeout {
		t.Errorf("the agent may take %s, a call %s", limit, CallTimeout)
	}
}
