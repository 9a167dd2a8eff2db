package plugin

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What is kept of what a plugin writes.
const (
	maxLine   = 1024    // bytes of a line; the rest is cut off
	maxLines  = 100     // of one call that are logged
	maxOutput = 1 << 20 // bytes of each output; a plugin that writes more is killed
	maxAnswer = 1 << 16 // bytes of a provider's answer
)

// lines cuts output into lines of bounded length and hands on the first of them.
type lines struct {
	log  func(line string)
	rest []byte
	last string // the last one that is not empty
	more int    // lines that were not handed on
	seen int
}

func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			l.keep(p)
			return n, nil
		}
		l.keep(p[:i])
		l.end()
		p = p[i+1:]
	}
}

func (l *lines) keep(p []byte) {
	l.rest = append(l.rest, p[:min(len(p), maxLine-len(l.rest))]...)
}

// end ends a line. It is called once more after the last Write.
func (l *lines) end() {
	s := printable(l.rest)
	l.rest = l.rest[:0]
	if s == "" {
		return
	}
	l.last = s
	if l.seen++; l.seen > maxLines {
		l.more++
		return
	}
	if l.log != nil {
		l.log(s)
	}
}

// printable is text fit for a log and a terminal: what is neither letter, mark, number, punctuation, symbol nor space
// is a question mark.
func printable(b []byte) string {
	s := strings.Map(func(c rune) rune {
		switch {
		case c == '\t':
			return ' '
		case c == utf8.RuneError || !unicode.IsPrint(c):
			return '?'
		}
		return c
	}, string(b))
	return strings.TrimSpace(s)
}
