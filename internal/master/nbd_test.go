package master

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// export serves a file with nbdkit until the returned function is called.
func export(t *testing.T, sock, path string) (kill func()) {
	t.Helper()
	_ = os.Remove(sock)
	cmd := exec.Command("nbdkit", "-f", "-r", "-U", sock, "file", path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	poll(t, "nbdkit listens", func() bool {
		c, err := net.Dial("unix", sock)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(kill)
	return kill
}

func poll(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(90 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// A server that comes back with another image of the same size gets nothing into the clone.
func TestNBDMasterRebuilt(t *testing.T) {
	if _, err := exec.LookPath("nbdkit"); err != nil {
		t.Skip("SKIPPED: nbdkit is not installed")
	}
	content := noise(1 << 20)
	rebuilt := bytes.Clone(content)
	rebuilt[1<<20-1]++
	was, is := file(t, "was", content), file(t, "is", rebuilt)
	sock := filepath.Join(t.TempDir(), "s")
	l := cowfmt.Locator{Kind: cowfmt.LocatorNBD, Address: "nbd+unix:///?socket=" + sock}

	kill := export(t, sock, was)
	dev, err := Open(t.Context(), l, nil, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	id, err := Identify(dev)
	if err := errors.Join(err, dev.Close()); err != nil {
		t.Fatal(err)
	}
	if dev, err = Open(t.Context(), l, id, zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	got := make([]byte, 4096)
	read := func() error {
		_, err := dev.ReadAt(got, 4096)
		return err
	}
	if err := read(); err != nil {
		t.Fatal(err)
	}

	kill()
	kill = export(t, sock, is)
	poll(t, "the rebuilt image is noticed", func() bool {
		err := read()
		if err == nil {
			t.Fatal("a read of the rebuilt image succeeded")
		}
		return errors.Is(err, ErrWrong) && strings.Contains(err.Error(), l.Address)
	})
	if err := read(); !errors.Is(err, ErrWrong) {
		t.Errorf("the next read: %v", err)
	}

	kill()
	export(t, sock, was)
	poll(t, "the master is back", func() bool { return read() == nil })
	if !bytes.Equal(got, content[4096:8192]) {
		t.Error("other bytes than the master's")
	}
}
