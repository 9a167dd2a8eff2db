package top

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Control sequences, as every terminal since the VT100 knows them.
const (
	enter     = "\x1b[?1049h\x1b[?25l\x1b[?7l" // another screen, no cursor, no wrapping
	leave     = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	home      = "\x1b[H"
	clearLine = "\x1b[K"
	clearRest = "\x1b[J"
	reverse   = "\x1b[7m"
	plain     = "\x1b[0m"
)

// Key is what was pressed.
type Key int

// The keys there are.
const (
	Quit Key = iota
	Up
	Down
	PageUp
	PageDown
	Top
	Bottom
)

// Screen is a terminal that is drawn on as a whole. Close gives it back as it was.
type Screen struct {
	out     *os.File
	in      *os.File // nil if keys can't be read
	before  unix.Termios
	resized chan os.Signal
	keys    chan Key
	once    sync.Once
}

// Open takes a terminal over. in may be anything; keys are read if it is a terminal.
func Open(out, in *os.File) (*Screen, error) {
	s := &Screen{out: out, resized: make(chan os.Signal, 1), keys: make(chan Key)}
	if _, _, err := s.Size(); err != nil {
		return nil, err
	}
	if t, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS); err == nil {
		s.in, s.before = in, *t
		// Each key at once and not shown. Ctrl-C stays a signal; Ctrl-Z would leave the screen as it is.
		t.Lflag &^= unix.ICANON | unix.ECHO
		t.Cc[unix.VMIN], t.Cc[unix.VTIME], t.Cc[unix.VSUSP] = 1, 0, 0
		if err := unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, t); err != nil {
			return nil, err
		}
		go s.read()
	}
	signal.Notify(s.resized, syscall.SIGWINCH)
	if _, err := io.WriteString(out, enter); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Size is in characters.
func (s *Screen) Size() (width, height int, err error) {
	w, err := unix.IoctlGetWinsize(int(s.out.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, fmt.Errorf("size of the terminal: %w", err)
	}
	width, height = int(w.Col), int(w.Row)
	if width == 0 || height == 0 { // a serial line does not know
		width, height = 80, 24
	}
	return width, height, nil
}

// Resized tells of each change of the size.
func (s *Screen) Resized() <-chan os.Signal { return s.resized }

// Keys tells of each key.
func (s *Screen) Keys() <-chan Key { return s.keys }

// Draw replaces what is shown. The line numbered title is shown in reverse; -1 for none.
func (s *Screen) Draw(lines []string, title int) error {
	width, height, err := s.Size()
	if err != nil {
		return err
	}
	_, err = io.WriteString(s.out, frame(lines, title, width, height))
	return err
}

func frame(lines []string, title, width, height int) string {
	var b strings.Builder
	b.WriteString(home)
	for i, line := range lines[:min(len(lines), height)] {
		if i > 0 {
			b.WriteString("\r\n")
		}
		line = Cut(line, width)
		if i == title {
			line = reverse + line + clearLine + plain
		}
		b.WriteString(line + clearLine)
	}
	b.WriteString(clearRest)
	return b.String()
}

// Close gives the terminal back.
func (s *Screen) Close() {
	s.once.Do(func() {
		signal.Stop(s.resized)
		_, _ = io.WriteString(s.out, leave) // a terminal that is gone needs nothing
		if s.in != nil {
			_ = unix.IoctlSetTermios(int(s.in.Fd()), unix.TCSETS, &s.before)
		}
	})
}

// read reads keys until the process ends: a read of a terminal can't be called off.
func (s *Screen) read() {
	b := make([]byte, 64)
	for {
		n, err := s.in.Read(b)
		if err != nil {
			return
		}
		for _, k := range keysOf(string(b[:n])) {
			s.keys <- k
		}
	}
}

var sequences = []struct {
	text string
	key  Key
}{
	{"\x1b[A", Up}, {"\x1bOA", Up}, {"\x1b[B", Down}, {"\x1bOB", Down}, {"\x1b[5~", PageUp}, {"\x1b[6~", PageDown},
	{"\x1b[H", Top}, {"\x1b[1~", Top}, {"\x1b[F", Bottom}, {"\x1b[4~", Bottom},
	{"k", Up}, {"j", Down}, {"b", PageUp}, {" ", PageDown}, {"g", Top}, {"G", Bottom}, {"q", Quit}, {"Q", Quit},
}

func keysOf(text string) []Key {
	var keys []Key
next:
	for text != "" {
		for _, s := range sequences {
			if rest, ok := strings.CutPrefix(text, s.text); ok {
				keys, text = append(keys, s.key), rest
				continue next
			}
		}
		text = text[1:]
	}
	return keys
}
