package nbd

import (
	"encoding/binary"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// A descriptor smaller than the minimum block, which no server may send, ends before what is asked for.
func TestExtentsWithoutProgress(t *testing.T) {
	short := func(cookie uint64) []byte {
		d := pack(uint32(1), uint32(512), uint32(0)) // context, length, state
		return pack(uint32(magicChunk), uint16(chunkDone), uint16(chunkBlockStatus), cookie, uint32(len(d)), d)
	}
	uri := scripted(t, clientStart(uint16(infoBlockSize), uint32(64<<10), uint32(64<<10), uint32(1<<20)),
		after(4+16+(16+4+3+4+4+15)+(16+4+3+4)), // flags and three options
		after(requestSize), short(1), after(requestSize), short(2), after(requestSize), short(3))
	_, err := dial(t, uri, Options{}).Extents(4096, 4096)
	if err == nil || !strings.Contains(err.Error(), uri) || !strings.Contains(err.Error(), errShort.Error()) {
		t.Errorf("%v", err)
	}
}

// wide is 5 GiB of data, and remembers the most that was asked of it at once.
type wide struct {
	*memory
	most atomic.Int64
}

const wideSize = 5 << 30

func (w *wide) Info() blockdev.Info {
	return blockdev.Info{Name: "wide", Size: wideSize, BlockSize: 512}
}

func (w *wide) Extents(off, length int64) ([]blockdev.Extent, error) {
	for was := w.most.Load(); was < length && !w.most.CompareAndSwap(was, length); was = w.most.Load() {
	}
	return []blockdev.Extent{{Offset: off, Length: length}}, nil
}

// However much a client asks for, the backend describes no more than a reply may hold.
func TestStatusIsBounded(t *testing.T) {
	b := &wide{memory: newMemory(0)}
	s := testServer(b, false)
	sock := start(t, s)
	w := join(t, s).enter(true)
	w.say(req(cmdBlockStatus, 0, 5, 512, 4<<30-512))
	got := w.chunk()
	if n := binary.BigEndian.Uint32(got.data[4:]); got.kind != chunkBlockStatus || n != 128<<20 {
		t.Errorf("chunk of type %d, its first descriptor of %d bytes", got.kind, n)
	}
	ext, err := dial(t, "nbd+unix:///?socket="+sock, Options{}).Extents(0, wideSize)
	if err != nil || len(ext) != 1 || ext[0] != (blockdev.Extent{Length: wideSize}) {
		t.Errorf("the whole: %v, %v", ext, err)
	}
	if n := b.most.Load(); n != 128<<20 {
		t.Errorf("the backend was asked for %d bytes at once", n)
	}
}
