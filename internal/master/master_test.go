package master

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

func file(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func noise(n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(p)
	return p
}

// newStore makes a closed clone, of a master or empty, and returns its path.
func newStore(t *testing.T, size int64, l *cowfmt.Locator) string {
	t.Helper()
	p := store.Params{Name: "v", Role: cowfmt.RoleClone, Size: size, ChunkSize: 4096, Now: time.Now()}
	if l != nil {
		dev, err := Open(t.Context(), *l, nil, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		p.Master = l
		p.MasterIdentity, err = Identify(dev)
		if err := errors.Join(err, dev.Close()); err != nil {
			t.Fatal(err)
		}
	}
	h, err := store.NewHeader(p)
	if err != nil {
		t.Fatal(err)
	}
	path := file(t, "store", nil)
	if err := os.Truncate(path, h.DataEnd()); err != nil {
		t.Fatal(err)
	}
	dev, err := blockdev.OpenFile(t.Context(), path, blockdev.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(store.Create(dev, h), dev.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestParseLocator(t *testing.T) {
	raw, st := file(t, "disk", make([]byte, 4096)), newStore(t, 4096, nil)
	t.Chdir(filepath.Dir(raw))
	for arg, want := range map[string]cowfmt.Locator{
		raw:                          {Kind: cowfmt.LocatorRaw, Address: raw},
		"disk":                       {Kind: cowfmt.LocatorRaw, Address: raw},
		"raw:disk":                   {Kind: cowfmt.LocatorRaw, Address: raw},
		"raw:" + st:                  {Kind: cowfmt.LocatorRaw, Address: st},
		"store:" + st:                {Kind: cowfmt.LocatorStore, Address: st},
		"nbd://h/e":                  {Kind: cowfmt.LocatorNBD, Address: "nbd://h/e"},
		"nbd+unix:///e?socket=/s":    {Kind: cowfmt.LocatorNBD, Address: "nbd+unix:///e?socket=/s"},
		"store:a path with: colons ": {Kind: cowfmt.LocatorStore, Address: filepath.Join(filepath.Dir(raw), "a path with: colons ")},
	} {
		if got, err := ParseLocator(arg); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", arg, got, err, want)
		}
	}
	if _, err := ParseLocator(st); !errors.Is(err, ErrFormat) {
		t.Errorf("a store without store: %v", err)
	}
}

// The identity of docs/FORMAT.md, computed a second time.
func TestIdentityOfSamples(t *testing.T) {
	for _, size := range []int{512, 4096, 4608, 8192, 64*4096 - 512, 1 << 20, 3<<20 + 512} {
		content := noise(size)
		dev, err := Open(t.Context(), cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: file(t, "m", content)}, nil, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		id, err := Identify(dev)
		if err := errors.Join(err, dev.Close()); err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		_ = binary.Write(sum, binary.LittleEndian, uint64(size))
		for i := range 64 {
			at := 0
			if size > 4096 {
				at = i * ((size - 4096) / 4096) / 63 * 4096
			}
			sum.Write(content[at:min(at+4096, size)])
		}
		if id.Kind != cowfmt.IdentitySamples || id.Size != int64(size) || id.Digest != [32]byte(sum.Sum(nil)) {
			t.Errorf("%d bytes: %+v", size, id)
		}
	}
}

func TestIdentityIsChecked(t *testing.T) {
	content := noise(1 << 20)
	path := file(t, "m", content)
	l := cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: path}
	dev, err := Open(t.Context(), l, nil, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	id, err := Identify(dev)
	if err := errors.Join(err, dev.Close()); err != nil {
		t.Fatal(err)
	}
	again := func(l cowfmt.Locator, want *cowfmt.Identity) error {
		dev, err := Open(t.Context(), l, want, zerolog.Nop())
		if err == nil {
			err = dev.Close()
		}
		return err
	}
	if err := again(l, id); err != nil {
		t.Error(err)
	}
	// The same content at another path, of another date, is the same master.
	if err := again(cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: file(t, "moved", content)}, id); err != nil {
		t.Error(err)
	}
	for what, wrong := range map[string]*cowfmt.Identity{
		"size":   {Kind: cowfmt.IdentitySamples, Size: 4096, Digest: id.Digest},
		"digest": {Kind: cowfmt.IdentitySamples, Size: id.Size},
		"wwid":   {Kind: cowfmt.IdentityWWID, Size: id.Size, WWID: "naa.600"},
		"store":  {Kind: cowfmt.IdentityStore, Size: id.Size},
	} {
		if err := again(l, wrong); !errors.Is(err, ErrWrong) || !strings.Contains(err.Error(), path) {
			t.Errorf("wrong %s: %v", what, err)
		}
	}
}

// A file that was put on a LUN is the same master by its content.
func TestFileMovedToABlockDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: loop devices need root")
	}
	path := file(t, "m", noise(1<<20))
	out, err := exec.Command("losetup", "--find", "--show", "--read-only", path).CombinedOutput()
	if err != nil {
		t.Skipf("SKIPPED: no loop device: %v: %s", err, out)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", loop).Run() })
	dev, err := Open(t.Context(), cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: path}, nil, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	id, err := Identify(dev)
	if err := errors.Join(err, dev.Close()); err != nil {
		t.Fatal(err)
	}
	if dev, err = Open(t.Context(), cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: loop}, id, zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
}

func TestMasterConformance(t *testing.T) {
	path := file(t, "m", noise(1<<20))
	raw := cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: path}
	clone := cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: newStore(t, 1<<20+512, &raw)}
	for name, l := range map[string]cowfmt.Locator{"raw": raw, "store": clone} {
		t.Run(name, func(t *testing.T) {
			blockdevtest.Conformance(t, func(t *testing.T) blockdev.Device {
				dev, err := Open(t.Context(), l, nil, zerolog.Nop())
				if err != nil {
					t.Fatal(err)
				}
				return dev
			})
		})
	}
}

func TestTooManyClonesDeep(t *testing.T) {
	l := cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: newStore(t, 4096, nil)}
	for range maxDepth - 1 {
		l = cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: newStore(t, 4096, &l)}
	}
	dev, err := Open(t.Context(), l, nil, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	one := newStore(t, 4096, &l)
	_, err = Open(t.Context(), cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: one}, nil, zerolog.Nop())
	if err == nil || !strings.Contains(err.Error(), "more than 8 clones deep") {
		t.Errorf("one too many: %v", err)
	}
	// Nothing of what was opened on the way stayed open.
	once, cancel := context.WithCancel(t.Context())
	cancel()
	f, err := blockdev.OpenFile(once, one, blockdev.FileOptions{Lock: blockdev.LockExclusive})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestMasterOpenForWriting(t *testing.T) {
	path := file(t, "m", make([]byte, 4096))
	f, err := blockdev.OpenFile(t.Context(), path, blockdev.FileOptions{Lock: blockdev.LockExclusive})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = Open(t.Context(), cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: path}, nil, zerolog.Nop())
	if !errors.Is(err, blockdev.ErrLocked) || !strings.Contains(err.Error(), "open for writing") {
		t.Errorf("%v", err)
	}
}

func TestQuote(t *testing.T) {
	for _, path := range []string{"/plain/path-1.raw", "with space", "it's", `a"b$c;d`, "", "\n", "ünï"} {
		out, err := exec.Command("sh", "-c", "printf %s "+Quote(path)).Output()
		if err != nil || string(out) != path {
			t.Errorf("%q: the shell reads %q, %v", path, out, err)
		}
	}
}
