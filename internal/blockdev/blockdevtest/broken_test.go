package blockdevtest

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// broken is a Memory with a fault that the suite must find.
type broken struct {
	*Memory
	how string
}

// ways of being broken, and the subtest that must fail.
var ways = map[string]string{
	"writes its whole page": "Concurrent",
	"zeroes too much":       "WriteZeroes",
	"zeroes and refuses":    "WriteZeroes",
	"all extents zero":      "Model",
	"extents with a gap":    "Fresh",
	"writes after close":    "Closed",
	"scribbles on buffers":  "Boundaries",
	"short read at the end": "Boundaries",
	"any alignment":         "BadRequests",
	"forgets":               "Reopen",
	"wrong error":           "ReadOnly",
	"size changes":          "Info",
}

func (b *broken) WriteAt(p []byte, off int64) (int, error) {
	switch {
	case b.how == "writes its whole page" && len(p) == 512:
		page := make([]byte, 4096)
		at := off &^ 4095
		if _, err := b.Memory.ReadAt(page, at); err != nil {
			return 0, err
		}
		time.Sleep(time.Microsecond) // the race is lost more often
		copy(page[off-at:], p)
		_, err := b.Memory.WriteAt(page, at)
		return len(p), err
	case b.how == "writes after close" && b.closed.Load():
		return len(p), nil
	case b.how == "any alignment" && off >= 0 && off%512 != 0:
		return len(p), nil
	}
	n, err := b.Memory.WriteAt(p, off)
	if b.how == "scribbles on buffers" && len(p) > 0 {
		p[0]++
	}
	return n, err
}

func (b *broken) ReadAt(p []byte, off int64) (int, error) {
	if b.how == "short read at the end" && len(p) > 512 && off+int64(len(p)) == b.info.Size {
		n, err := b.Memory.ReadAt(p[:len(p)-512], off)
		return n, err
	}
	return b.Memory.ReadAt(p, off)
}

func (b *broken) WriteZeroes(off, length int64, unmap bool) error {
	switch {
	case b.how == "zeroes too much" && unmap && length > 0 && off+length < b.info.Size:
		return b.Memory.WriteZeroes(off, length+512, unmap)
	case b.how == "zeroes and refuses" && !unmap:
		_ = b.Memory.WriteZeroes(off, length, unmap)
		return blockdev.ErrNotSupported
	case b.how == "wrong error":
		return blockdev.ErrNotSupported
	}
	return b.Memory.WriteZeroes(off, length, unmap)
}

func (b *broken) Extents(off, length int64) ([]blockdev.Extent, error) {
	e, err := b.Memory.Extents(off, length)
	if err == nil && length > 0 {
		switch b.how {
		case "all extents zero":
			return []blockdev.Extent{{Offset: off, Length: length, Zero: true}}, nil
		case "extents with a gap":
			e[len(e)-1].Length -= 512
		}
	}
	return e, err
}

func (b *broken) Info() blockdev.Info {
	info := b.Memory.Info()
	if b.how == "size changes" && len(b.disk.now.leaves) > 0 {
		info.Size += 512
	}
	return info
}

const brokenEnv = "BLOCKDEVTEST_BROKEN"

// TestBroken checks that the suite fails for each broken device, in a process of its own.
func TestBroken(t *testing.T) {
	if how := os.Getenv(brokenEnv); how != "" {
		Conformance(t, func(*testing.T) blockdev.Device {
			m := NewMemory("disk", 1<<20, 512)
			return &broken{m.Open(how == "wrong error"), how}
		}, WithReopen(func(_ *testing.T, d blockdev.Device) blockdev.Device {
			m := d.(*broken).Memory
			if how == "forgets" {
				return NewMemory("disk", m.info.Size, 512)
			}
			return m.Open(false)
		}))
		return
	}
	for how, subtest := range ways {
		t.Run(how, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestBroken$/^"+subtest+"$", "-rapid.nofailfile")
			cmd.Env = append(os.Environ(), brokenEnv+"="+how)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestBroken/"+subtest) {
				t.Errorf("the suite's %s did not fail: %v\n%s", subtest, err, out)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestBroken$")
		cmd.Env = append(os.Environ(), brokenEnv+"=not at all")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("the suite fails for a sound device: %v\n%s", err, out)
		}
	})
}
