package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Migrate moves the guest with `virsh migrate FLAGS NAME qemu+tcp://TO/system`, run on the host it is on, and returns
// what virsh said. Without flags it is --live --p2p. Afterwards the Guest is where it runs, also after a failure.
func (g *Guest) Migrate(ctx context.Context, to *Host, flags ...string) (string, error) {
	from := g.Host()
	return g.migrate(ctx, from, "qemu:///system", to, flags)
}

// MigrateFromAdmin moves the guest as Migrate does, with a virsh that runs on neither host: on the site's Admin.
func (g *Guest) MigrateFromAdmin(ctx context.Context, to *Host, flags ...string) (string, error) {
	from := g.Host()
	return g.migrate(ctx, from.site.Admin, from.URI(), to, flags)
}

func (g *Guest) migrate(ctx context.Context, client *Host, connection string, to *Host, flags []string) (string, error) {
	if len(flags) == 0 {
		flags = []string{"--live", "--p2p"}
	}
	defer g.BeginMove()()
	out, err := client.Run(ctx, "virsh", append(append([]string{"-c", connection, "migrate"}, flags...), g.Name, to.URI())...)
	if err == nil {
		g.MovedTo(to)
		return out, nil
	}
	// Wherever it lives now. It may be nowhere to be found yet, or paused on both.
	look, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if on, lerr := g.RunsOn(look); lerr == nil && len(on) == 1 {
		g.MovedTo(on[0])
	}
	return out, err
}

// BeginMove tells the Guest that it may move from now on, by somebody else's doing: what Run waits for is then asked
// again once the move is over. Call the function it returns after MovedTo, or if the guest stayed.
func (g *Guest) BeginMove() (over func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	ch := make(chan struct{})
	g.moving = ch
	g.moves++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.moving == ch {
			g.moving = nil
		}
		close(ch)
	}
}

// Moves is how often the guest has begun to move.
func (g *Guest) Moves() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.moves
}

// MovedTo tells the Guest that it is on this host now.
func (g *Guest) MovedTo(h *Host) {
	g.mu.Lock()
	from := g.host
	g.host = h
	g.mu.Unlock()
	if from == h {
		return
	}
	g.hangUp() // and on the new host again when there is something to say
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guests = append(h.guests, g)
}

// RunsOn says on which hosts of its site the guest runs, as their libvirtds have it. An error is only of those that are
// up: where libvirtd is dead a guest is not seen.
func (g *Guest) RunsOn(ctx context.Context) ([]*Host, error) {
	var on []*Host
	var errs []error
	for _, h := range g.Host().site.Hosts {
		if h.pid() == 0 {
			continue
		}
		switch out, err := h.Virsh(ctx, "list", "--name", "--state-running"); {
		case err != nil:
			errs = append(errs, fmt.Errorf("host %s: %w", h.Name, err))
		default:
			for name := range strings.FieldsSeq(out) {
				if name == g.Name {
					on = append(on, h)
				}
			}
		}
	}
	return on, errors.Join(errs...)
}

// JobInfo is what `virsh domjobinfo` says of the guest on the host it is on, name to value: "Job type" is None when
// nothing goes on.
func (g *Guest) JobInfo(ctx context.Context, flags ...string) (map[string]string, error) {
	out, err := g.Host().Virsh(ctx, append([]string{"domjobinfo", g.Name}, flags...)...)
	if err != nil {
		return nil, err
	}
	info := map[string]string{}
	for line := range strings.Lines(out) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			info[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return info, nil
}

// AwaitJob polls JobInfo until ok accepts it.
func (g *Guest) AwaitJob(ctx context.Context, ok func(info map[string]string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, stateChange)
	defer cancel()
	for {
		info, err := g.JobInfo(ctx)
		if err == nil && ok(info) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("guest %s: its job is still %v: %w", g.Name, info, errors.Join(err, ctx.Err()))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// AwaitMemory waits until a migration has begun to copy memory: its source is then in pre-copy.
func (g *Guest) AwaitMemory(ctx context.Context) error {
	return g.AwaitJob(ctx, func(info map[string]string) bool {
		return info["Operation"] == "Outgoing migration" && info["Memory processed"] != "" && !strings.HasPrefix(info["Memory processed"], "0.000")
	})
}

// AbortJob cancels what goes on: a migration before its end.
func (g *Guest) AbortJob(ctx context.Context) error {
	_, err := g.Host().Virsh(ctx, "domjobabort", g.Name)
	return err
}

// LimitMigration bounds how fast memory is copied, MiB a second: 1 is for ever under load. Of the guest as it runs now.
func (g *Guest) LimitMigration(ctx context.Context, mib int) error {
	return g.pace(ctx, mib, 300*time.Millisecond)
}

// HurryMigration undoes LimitMigration, and lets what is left of the memory be copied in one go while the guest stands still: each
// look at what it has changed while it runs is a chance that its emulation loses a page (ErrPanicked).
func (g *Guest) HurryMigration(ctx context.Context) error {
	return g.pace(ctx, 1000, 10*time.Second)
}

// pace says how fast memory is copied, and how long the guest may stand still for the last of it.
func (g *Guest) pace(ctx context.Context, mib int, still time.Duration) error {
	h := g.Host()
	_, err := h.Virsh(ctx, "migrate-setmaxdowntime", g.Name, fmt.Sprint(still.Milliseconds()))
	if err == nil {
		_, err = h.Virsh(ctx, "migrate-setspeed", g.Name, fmt.Sprint(mib))
	}
	return err
}
