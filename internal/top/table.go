package top

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/virt-cow/virt-cow/internal/api"
)

// column is one of the table. Those of a higher drop are left out first where the terminal is too narrow.
type column struct {
	title string
	drop  int
	right bool
	cell  func(v *api.VolumeStatus, r *Rates) string
}

const none = "-"

var columns = []column{
	{"VOLUME", 0, false, func(v *api.VolumeStatus, _ *Rates) string { return v.Volume }},
	{"DOMAIN", 2, false, func(v *api.VolumeStatus, _ *Rates) string { return orNone(v.Domain) }},
	{"TARGET", 5, false, func(v *api.VolumeStatus, _ *Rates) string { return orNone(v.Target) }},
	{"STATE", 0, false, func(v *api.VolumeStatus, _ *Rates) string { return v.State }},
	{"IOPS", 1, true, rate(func(r *Rates) string { return Count(r.Reads + r.Writes + r.Flushes) })},
	{"READ/s", 3, true, rate(func(r *Rates) string { return Bytes(r.ReadBytes) })},
	{"WRITE/s", 3, true, rate(func(r *Rates) string { return Bytes(r.WriteBytes) })},
	{"P99", 6, true, rate(func(r *Rates) string { return micros(r.P99) })},
	{"HYDRATION", 4, false, hydration},
	{"NOTE", 7, false, func(v *api.VolumeStatus, _ *Rates) string { return Note(v) }},
}

func rate(f func(*Rates) string) func(*api.VolumeStatus, *Rates) string {
	return func(_ *api.VolumeStatus, r *Rates) string {
		if r == nil {
			return none
		}
		return f(r)
	}
}

const barWidth = 12

func hydration(v *api.VolumeStatus, r *Rates) string {
	if v.Engine == nil || v.Engine.Hydration == nil || v.Engine.Hydration.Total <= 0 {
		return none
	}
	h := v.Engine.Hydration
	if h.State == api.HydrationDone {
		return "cut loose"
	}
	part := min(max(float64(h.Done)/float64(h.Total), 0), 1)
	full := int(part * barWidth)
	text := fmt.Sprintf("[%s%s] %3d%%", strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), int(part*100))
	switch {
	case h.State != api.HydrationRunning:
		return text + " " + h.State
	case r != nil && r.Left > 0:
		return text + " ETA " + Duration(r.Left)
	}
	return text
}

// Note tells what is special about a volume in a few words, "" if nothing is.
func Note(v *api.VolumeStatus) string {
	var notes []string
	if v.Old {
		notes = append(notes, "old binary")
	}
	if v.Held != "" {
		notes = append(notes, "held")
	}
	if e := v.Engine; e != nil {
		if e.ReadOnly {
			notes = append(notes, "read-only")
		}
		if e.Cache == api.CacheOff {
			notes = append(notes, "cache off")
		}
		if e.Suspended {
			notes = append(notes, "suspended")
		}
		if e.Error != "" {
			notes = append(notes, "FLUSH fails")
		}
	}
	notes = append(notes, moves(v)...)
	if waits(v) {
		notes = append([]string{"WAITS"}, notes...)
	}
	return strings.Join(notes, ", ")
}

// moves tells where a volume goes.
func moves(v *api.VolumeStatus) []string {
	var notes []string
	if v.Migration != nil {
		notes = append(notes, "migrating "+v.Migration.Direction)
	}
	if v.Engine == nil {
		return notes
	}
	switch h := v.Engine.Handover; {
	case h != nil:
		notes = append(notes, h.Role+" "+h.State)
		if h.Held > 0 {
			notes = append(notes, Count(float64(h.Held))+" requests held")
		}
	case len(v.Engine.Grants) > 0:
		notes = append(notes, fmt.Sprintf("%d granted", len(v.Engine.Grants)))
	}
	return notes
}

// waits says whether a hand-over of the volume waits for somebody.
func waits(v *api.VolumeStatus) bool {
	return v.Migration != nil && v.Migration.Waits != "" ||
		v.Engine != nil && v.Engine.Handover != nil && v.Engine.Handover.Waits != ""
}

// Table makes the lines of the table, its title line first, none wider than width in characters. Columns are left
// out, and at last cut, to make it so.
func Table(volumes []api.VolumeStatus, rates map[string]*Rates, width int) []string {
	cells := make([][]string, 0, 1+len(volumes))
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.title
	}
	cells = append(cells, titles)
	for i := range volumes {
		v := &volumes[i]
		row := make([]string, len(columns))
		for j, c := range columns {
			row[j] = printable(c.cell(v, rates[v.Volume]))
		}
		cells = append(cells, row)
	}
	widths := make([]int, len(columns))
	for _, row := range cells {
		for j, text := range row {
			widths[j] = max(widths[j], utf8.RuneCountInString(text))
		}
	}
	keep := fit(widths, width)
	lines := make([]string, len(cells))
	for i, row := range cells {
		var b strings.Builder
		for _, j := range keep {
			pad := strings.Repeat(" ", widths[j]-utf8.RuneCountInString(row[j]))
			if columns[j].right {
				b.WriteString(pad + row[j] + "  ")
			} else {
				b.WriteString(row[j] + pad + "  ")
			}
		}
		lines[i] = Cut(strings.TrimRight(b.String(), " "), width)
	}
	return lines
}

// fit chooses the columns that have room, in their order.
func fit(widths []int, width int) []int {
	for limit := 10; ; limit-- {
		var keep []int
		need := -2
		for j, c := range columns {
			if c.drop <= limit {
				keep, need = append(keep, j), need+widths[j]+2
			}
		}
		if need <= width || limit == 0 {
			return keep
		}
	}
}

// Cut shortens a line to a width in characters.
func Cut(line string, width int) string {
	if utf8.RuneCountInString(line) <= width {
		return line
	}
	if width <= 1 {
		return string([]rune(line)[:max(width, 0)])
	}
	return string([]rune(line)[:width-1]) + "…"
}

// Wrap breaks a line at its blanks, so that no part is wider than width in characters; a longer word stays whole. All
// parts but the first are indented.
func Wrap(line string, width int) []string {
	const indent = "  "
	var lines []string
	part := ""
	for _, word := range strings.Fields(line) {
		switch {
		case part == "":
			part = word
		case utf8.RuneCountInString(part)+1+utf8.RuneCountInString(word) <= width:
			part += " " + word
		default:
			lines, part = append(lines, part), indent+word
		}
	}
	return append(lines, part)
}

// printable leaves out what would move the cursor: names come from libvirt.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// Count is a number for people: 950, 12.3k.
func Count(n float64) string {
	switch {
	case n >= 999.5e6:
		return fmt.Sprintf("%.1fG", n/1e9)
	case n >= 999.5e3:
		return fmt.Sprintf("%.1fM", n/1e6)
	case n >= 9999.5:
		return fmt.Sprintf("%.1fk", n/1e3)
	}
	return fmt.Sprintf("%.0f", n)
}

// Bytes is a number of bytes for people, in few characters: 0, 512K, 1.5M.
func Bytes(n float64) string {
	if n < 1 {
		return "0"
	}
	unit := 0
	for n >= 1023.5 && unit < 6 {
		n, unit = n/1024, unit+1
	}
	suffix := "BKMGTPE"[unit : unit+1]
	if n < 9.95 && unit > 0 {
		return fmt.Sprintf("%.1f%s", n, suffix)
	}
	return fmt.Sprintf("%.0f%s", n, suffix)
}

// Duration is a number of seconds for people: 45s, 3m10s, 2h5m, 3d4h.
func Duration(seconds float64) string {
	d := time.Duration(min(seconds, 1e9) * float64(time.Second)).Round(time.Second)
	day := 24 * time.Hour
	switch {
	case d >= day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

func micros(us float64) string {
	switch {
	case us <= 0:
		return none
	case us < 1000:
		return fmt.Sprintf("%.0fus", us)
	case us < 1e6:
		return fmt.Sprintf("%.0fms", us/1e3)
	}
	return fmt.Sprintf("%.0fs", us/1e6)
}

func orNone(s string) string {
	if s == "" {
		return none
	}
	return s
}
