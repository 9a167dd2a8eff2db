package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// A fresh connection carries nothing before the hook was content with what it read there.
func TestReconnected(t *testing.T) {
	m := newMemory(1 << 20)
	uri := "nbd+unix:///?socket=" + start(t, testServer(m, false))
	errOther := errors.New("another disk")
	var asked int
	c := dial(t, uri, Options{Reconnected: func(r io.ReaderAt) error {
		asked++
		b := make([]byte, 512)
		if _, err := r.ReadAt(b, 1<<20-512); err != nil {
			return err
		}
		if b[511] != 0 {
			return fmt.Errorf("%s: %w", uri, errOther)
		}
		return nil
	}})
	read := func() error {
		_, err := c.ReadAt(make([]byte, 4096), 0)
		return err
	}
	if err := read(); err != nil || asked != 0 {
		t.Fatalf("first connection: %v, asked %d times", err, asked)
	}
	mark := func(b byte) { m.change(func(data []byte) { data[1<<20-1] = b }) }
	mark(1)
	c.link.fail(io.ErrClosedPipe)
	for want := 1; want <= 2; want++ {
		if err := read(); !errors.Is(err, errOther) || !strings.Contains(err.Error(), uri) || asked != want {
			t.Errorf("another disk: %v, asked %d times, want %d", err, asked, want)
		}
	}
	mark(0)
	for range 2 {
		if err := read(); err != nil || asked != 3 {
			t.Errorf("the disk again: %v, asked %d times", err, asked)
		}
	}
}

// Close does not leave a request behind which waits for a hook that waits for a server.
func TestCloseWhileReconnected(t *testing.T) {
	m := newMemory(1 << 20)
	m.detached, m.hold = true, make(chan struct{})
	defer close(m.hold)
	c := dial(t, "nbd+unix:///?socket="+start(t, testServer(m, false)), Options{Reconnected: func(r io.ReaderAt) error {
		_, err := r.ReadAt(make([]byte, 512), 0)
		return err
	}})
	c.link.fail(io.ErrClosedPipe)
	failed := make(chan error)
	go func() {
		_, err := c.ReadAt(make([]byte, 512), 0)
		failed <- err
	}()
	until(t, "the hook's read arrived", func() bool { return m.live.Load() == 1 })
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("a read during Close: %v", err)
	}
}
