package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"

	"github.com/virt-cow/virt-cow/internal/engine"
)

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}

// How often progress is shown: on a terminal in place, elsewhere as plain lines.
const (
	progressBar  = 200 * time.Millisecond
	progressLine = 5 * time.Second
	progressLate = time.Second // nothing is shown of what is done by then
)

// progress shows how far something is.
type progress struct {
	w     io.Writer
	bar   bool
	label string
	begin time.Time
	from  int64 // done at begin: not counted into the rate
	shown bool
	last  time.Time
}

func newProgress(w io.Writer, label string, from int64) *progress {
	return &progress{w: w, bar: isTerminal(w), label: label, begin: time.Now(), from: from}
}

func (p *progress) every() time.Duration {
	if p.bar {
		return progressBar
	}
	return progressLine
}

// clearLine takes a bar away.
const clearLine = "\r\x1b[K"

// overBar writes lines where a bar may be: it is drawn again below them.
type overBar struct{ io.Writer }

func (w overBar) Write(p []byte) (int, error) {
	if _, err := w.Writer.Write(append([]byte(clearLine), p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// show draws one state; total and done are bytes.
func (p *progress) show(done, total int64) {
	if time.Since(p.begin) < progressLate {
		return
	}
	p.shown = true
	if p.bar {
		fmt.Fprint(p.w, clearLine+p.text(done, total))
		return
	}
	fmt.Fprintln(p.w, p.text(done, total))
}

// end draws the last state, if any was drawn, and the reason.
func (p *progress) end(done, total int64, outcome string) {
	clear := ""
	if p.bar && p.shown {
		clear = clearLine
	}
	fmt.Fprintf(p.w, "%s%s: %s, %s of %s in %s\n", clear, p.label, outcome, formatSize(done), formatSize(total),
		time.Since(p.begin).Round(100*time.Millisecond))
}

const barWidth = 30

func (p *progress) text(done, total int64) string {
	part := 1.0
	if total > 0 {
		part = float64(done) / float64(total)
	}
	speed := float64(done-p.from) / time.Since(p.begin).Seconds()
	left := "--"
	if speed > 0 {
		left = time.Duration(float64(total-done) / speed * float64(time.Second)).Round(time.Second).String()
	}
	full := int(part * barWidth)
	return fmt.Sprintf("%s [%s%s] %5.1f%%  %s of %s  %s/s  ETA %s", p.label,
		strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), part*100,
		formatSize(done), formatSize(total), formatSize(int64(speed)), left)
}

// showHydration shows a volume's background copy until it ends.
func showHydration(ctx context.Context, w io.Writer, v *engine.Volume) {
	now := v.Hydration()
	p := newProgress(w, "hydrate "+v.Info().Name, now.Done)
	const look = 50 * time.Millisecond
	for {
		now = v.Hydration()
		switch now.State {
		case engine.HydrationDone:
			p.end(now.Done, now.Total, "cut loose from its master")
			return
		case engine.HydrationFailed:
			p.end(now.Done, now.Total, "failed: "+now.Err.Error())
			return
		}
		p.step(now.Done, now.Total)
		select {
		case <-ctx.Done():
			now = v.Hydration()
			p.end(now.Done, now.Total, "stopped, what was copied stays")
			return
		case <-time.After(look):
		}
	}
}

// step is show at most as often as is due.
func (p *progress) step(done, total int64) {
	if time.Since(p.last) >= p.every() {
		p.last = time.Now()
		p.show(done, total)
	}
}
