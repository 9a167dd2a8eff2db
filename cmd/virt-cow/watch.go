package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/top"
)

// minInterval keeps a watch from being a load.
const minInterval = 100 * time.Millisecond

// glance is one look at the daemon: a line of --watch --json.
type glance struct {
	Time   time.Time             `json:"time"`
	Status *api.DaemonStatus     `json:"status,omitempty"`
	Rates  map[string]*top.Rates `json:"rates,omitempty"` // by volume
	Error  string                `json:"error,omitempty"` // why there is no status
}

// watch looks again and again until it is interrupted, which is no error. A daemon that is down may come back.
func (c *StatusCmd) watch(env *Env) error {
	if c.Interval < minInterval {
		return exitError{fmt.Errorf("--interval %s: at least %s", c.Interval, minInterval), exitUsage}
	}
	out, onTerminal := env.Stdout.(*os.File)
	if env.JSON || !onTerminal || !isTerminal(out) {
		return c.watchPlain(env)
	}
	screen, err := top.Open(out, os.Stdin)
	if err != nil {
		return err
	}
	defer screen.Close()
	return c.watchScreen(env, screen)
}

func (c *StatusCmd) look(ctx context.Context, d *api.Daemon, m *top.Meter) glance {
	ctx, cancel := context.WithTimeout(ctx, max(10*time.Second, 2*c.Interval))
	defer cancel()
	s, err := d.Status(ctx)
	g := glance{Time: time.Now(), Status: s}
	if err != nil {
		g.Error = err.Error()
		return g
	}
	g.Rates = m.Look(s, g.Time)
	return g
}

func (c *StatusCmd) watchPlain(env *Env) error {
	d, m, tick := api.NewDaemon(env.RunDir), &top.Meter{}, time.NewTicker(c.Interval)
	defer tick.Stop()
	encoder := json.NewEncoder(env.Stdout)
	for {
		g := c.look(env.Context, d, m)
		if env.Context.Err() != nil {
			return nil
		}
		var err error
		switch {
		case env.JSON:
			err = encoder.Encode(g)
		default:
			for _, line := range page(&g, math.MaxInt32) {
				fmt.Fprintln(env.Stdout, line)
			}
			_, err = fmt.Fprintln(env.Stdout)
		}
		if err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-env.Context.Done():
			return nil
		}
	}
}

// page is a look as lines; the table begins at the third.
func page(g *glance, width int) []string {
	if g.Error != "" {
		return []string{g.Time.Format(time.TimeOnly) + "  " + g.Error}
	}
	lines := []string{g.Time.Format(time.TimeOnly) + "  " + headline(g.Status, g.Time), total(g)}
	lines = append(lines, top.Table(g.Status.Volumes, g.Rates, width)...)
	return append(append(lines, trouble(g.Status)...), underWay(g.Status, g.Time)...)
}

// total is what all volumes do together.
func total(g *glance) string {
	var all top.Rates
	for _, r := range g.Rates {
		all.Reads += r.Reads
		all.Writes += r.Writes
		all.ReadBytes += r.ReadBytes
		all.WriteBytes += r.WriteBytes
		all.Hydrated += r.Hydrated
	}
	return fmt.Sprintf("reads %s/s %sB/s, writes %s/s %sB/s, hydration %sB/s", top.Count(all.Reads), unit(all.ReadBytes),
		top.Count(all.Writes), unit(all.WriteBytes), unit(all.Hydrated))
}

// unit is top.Bytes with the B of bytes left to who prints it.
func unit(n float64) string {
	text := top.Bytes(n)
	if text[len(text)-1] == 'B' {
		text = text[:len(text)-1]
	}
	return text
}

// watchScreen draws in place. Looks are taken beside it, so that keys are heard while the daemon is slow.
func (c *StatusCmd) watchScreen(env *Env, screen *top.Screen) error {
	looks := make(chan glance)
	go func() {
		d, m, tick := api.NewDaemon(env.RunDir), &top.Meter{}, time.NewTicker(c.Interval)
		defer tick.Stop()
		for {
			select {
			case looks <- c.look(env.Context, d, m):
			case <-env.Context.Done():
				return
			}
			select {
			case <-tick.C:
			case <-env.Context.Done():
				return
			}
		}
	}()
	v := &viewer{screen: screen, seen: glance{Time: time.Now(), Error: "asking the daemon…"}}
	for {
		if err := v.draw(); err != nil {
			return err
		}
		select {
		case v.seen = <-looks:
		case <-screen.Resized():
		case k := <-screen.Keys():
			if k == top.Quit {
				return nil
			}
			v.scroll(k)
		case <-env.Context.Done():
			return nil
		}
	}
}

// viewer shows the part of the table that has room.
type viewer struct {
	screen *top.Screen
	seen   glance
	first  int // volume at the top
	room   int // for volumes
}

func (v *viewer) scroll(k top.Key) {
	switch k {
	case top.Up:
		v.first--
	case top.Down:
		v.first++
	case top.PageUp:
		v.first -= v.room
	case top.PageDown:
		v.first += v.room
	case top.Top:
		v.first = 0
	case top.Bottom:
		v.first = math.MaxInt32
	}
}

func (v *viewer) draw() error {
	width, height, err := v.screen.Size()
	if err != nil {
		return err
	}
	if v.seen.Error != "" {
		return v.screen.Draw([]string{v.seen.Time.Format(time.TimeOnly) + "  " + v.seen.Error, "", "q quits"}, -1)
	}
	s := v.seen.Status
	var wrong []string
	for _, line := range append(trouble(s), underWay(s, v.seen.Time)...) {
		wrong = append(wrong, top.Wrap(line, width)...)
	}
	wrong = wrong[:min(len(wrong), max(height/3, 1))]
	const around = 4 // headline, total, titles, foot
	v.room = max(height-around-len(wrong), 1)
	v.first = max(0, min(v.first, len(s.Volumes)-v.room))
	last := min(v.first+v.room, len(s.Volumes))
	lines := []string{v.seen.Time.Format(time.TimeOnly) + "  " + headline(s, v.seen.Time), total(&v.seen)}
	lines = append(lines, top.Table(s.Volumes[v.first:last], v.seen.Rates, width)...)
	lines = append(lines, wrong...)
	foot := "q quits"
	if v.room < len(s.Volumes) {
		foot += fmt.Sprintf(", arrows and pages scroll: %d to %d of %d", v.first+1, last, len(s.Volumes))
	}
	return v.screen.Draw(append(lines, foot), 2)
}
