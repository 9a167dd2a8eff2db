package backup

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
)

// image is a device with data, a hole and zeros, of no round size.
func image(t *testing.T) *blockdevtest.Memory {
	t.Helper()
	m := blockdevtest.NewMemory("image", 3*restorePiece+head+512, 512)
	data := bytes.Repeat([]byte("sixteen bytes..."), restorePiece/16)
	for _, off := range []int64{0, head, head + 2*restorePiece} {
		if _, err := m.WriteAt(data, off); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func content(t *testing.T, d blockdev.Device, length int64) []byte {
	t.Helper()
	b := make([]byte, length)
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRestore(t *testing.T) {
	t.Parallel()
	from := image(t)
	size := from.Info().Size
	want := content(t, from, size)
	for _, empty := range []bool{true, false} {
		to := blockdevtest.NewMemory("to", size+4096, 512)
		if !empty {
			if _, err := to.WriteAt(bytes.Repeat([]byte{0xee}, int(size)), 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := Restore(t.Context(), from, to, empty, nil); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, to, size), want) {
			t.Errorf("empty %v: not what it was", empty)
		}
	}
	if err := Restore(t.Context(), from, blockdevtest.NewMemory("small", size-512, 512), false, nil); err == nil {
		t.Error("restored to what is too small")
	}
	if err := Restore(t.Context(), from, blockdevtest.NewMemory("4K", size+4096-512, 4096), false, nil); err == nil {
		t.Error("restored to sectors that it does not fit")
	}
}

// Whatever operation fails, what was not restored to its end has no first MiB, unless all else is there.
func TestRestoreCutOff(t *testing.T) {
	t.Parallel()
	from := image(t)
	size := from.Info().Size
	want := content(t, from, size)
	none := make([]byte, head)
	blockdevtest.EachFailure(t, blockdevtest.Rule{}, func(n int, f *blockdevtest.Failure) {
		to := blockdevtest.NewMemory("to", size, 512)
		if _, err := to.WriteAt(bytes.Repeat([]byte{0xee}, int(size)), 0); err != nil {
			t.Fatal(err)
		}
		err := Restore(t.Context(), from, blockdevtest.NewFault(to, f), false, nil)
		got := content(t, to, size)
		switch whole := bytes.Equal(got, want); {
		case err == nil && !whole:
			t.Errorf("failure %d: no error, but not what it was", n)
		case err != nil && n > 1 && !bytes.Equal(got[:head], none) && !bytes.Equal(got[head:], want[head:]):
			t.Errorf("failure %d: %v: what is half restored can be taken for a disk", n, err)
		}
	})
}

func TestRestoreInterrupted(t *testing.T) {
	t.Parallel()
	from := image(t)
	to := blockdevtest.NewMemory("to", from.Info().Size, 512)
	ctx, cancel := context.WithCancel(t.Context())
	err := Restore(ctx, from, to, false, func(int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if !bytes.Equal(content(t, to, head), make([]byte, head)) {
		t.Error("what is half restored can be taken for a disk")
	}
}
