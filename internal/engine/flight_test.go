package engine

import (
	"bytes"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// A request that the kernel cancels, because nobody was there to do it, is done in the blocking way.
func TestCancelledPiece(t *testing.T) {
	file := openFile(t, newFile(t, "f", mib), blockdev.FileOptions{})
	v := mustOpen(t, memoryStore(t, mib, 4096, sector, false), nil, uuid.New(), "")
	want, done := filled(8192, 4096, 1), make(chan error, 1)
	check(t, v.gate.enter(t.Context(), classOf(blockdev.OpWrite)))
	f := newFlight(v, &blockdev.Request{Op: blockdev.OpWrite, Off: 8192, Length: 4096, Buf: want, Done: func(_ *blockdev.Request, err error) { done <- err }})
	p := &piece{IO: blockdev.IO{Buf: want, Off: 8192}, f: f, file: file}
	p.done(-int32(unix.ECANCELED))
	check(t, <-done)
	got := make([]byte, 4096)
	_, err := file.ReadAt(got, 8192)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Error("not written")
	}
	check(t, v.Close())
}
