package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrInvalid is what every refused configuration wraps.
var ErrInvalid = errors.New("invalid configuration")

// Problem is one thing that is wrong.
type Problem struct {
	Where   string `json:"where,omitempty"` // file, variable or flag; "" for a default
	Line    int    `json:"line,omitempty"`  // in a file, from 1; 0: not one line's
	Key     string `json:"key,omitempty"`
	Warning bool   `json:"warning,omitempty"` // works, but not well
	Message string `json:"message"`           // what is wrong and what to do
}

func (p Problem) String() string {
	var b strings.Builder
	if p.Where != "" {
		b.WriteString(p.Where)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + " ")
	}
	if p.Warning {
		return b.String() + p.Message + " (warning)"
	}
	return b.String() + p.Message
}

// failures joins the problems that are more than warnings; nil if there are none.
func failures(problems []Problem) error {
	var lines []string
	for _, p := range problems {
		if !p.Warning {
			lines = append(lines, p.String())
		}
	}
	if lines == nil {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrInvalid, strings.Join(lines, "\n  "))
}

// nearest is the known word that a mistyped one is most like, "" if none is like it.
func nearest(word string, known []string) string {
	best, least := "", 1+max(len(word), 3)/3
	for _, k := range known {
		if d := distance(word, k); d <= least && d < max(len(word), len(k)) {
			if best == "" || d < least {
				best, least = k, d
			}
		}
	}
	return best
}

// distance is Levenshtein's, of bytes, over at most the first 64 of each.
func distance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + slices.Min([]int{diagonal, row[j], row[j+1]})
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
