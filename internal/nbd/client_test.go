package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// spawn runs a server program until the test ends or the returned function is called, and waits for
// its socket.
func spawn(t *testing.T, sock string, name string, args ...string) (kill func()) {
	t.Helper()
	need(t, name)
	os.Remove(sock)
	cmd := exec.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	kill = func() {
		once.Do(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
	}
	t.Cleanup(kill)
	until(t, name+" listens", func() bool {
		c, err := net.Dial("unix", sock)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return kill
}

func dial(t testing.TB, uri string, opts Options) *Client {
	t.Helper()
	c, err := Dial(context.Background(), uri, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// exercise writes, zeroes and reads a device from many goroutines and compares with what it should be.
func exercise(t *testing.T, d blockdev.Device) {
	t.Helper()
	info := d.Info()
	const parts = 8
	part := info.Size / parts
	var wg sync.WaitGroup
	for p := range int64(parts) {
		wg.Go(func() {
			model := make([]byte, part)
			if _, err := d.ReadAt(model, p*part); err != nil {
				t.Error(err)
				return
			}
			bs := int64(info.BlockSize)
			for i := int64(0); i < 24; i++ {
				off := i * 7919 * bs % (part / 2)
				n := (i*i*31 + 1) * bs % (part / 2)
				if n == 0 {
					n = bs
				}
				if i%6 == 5 {
					err := d.WriteZeroes(p*part+off, n, i%4 == 1)
					if errors.Is(err, blockdev.ErrNotSupported) {
						continue
					} else if err != nil {
						t.Error(err)
						return
					}
					clear(model[off : off+n])
					continue
				}
				fillRandom(model[off:off+n], uint64(i+p))
				if _, err := d.WriteAt(model[off:off+n], p*part+off); err != nil {
					t.Error(err)
					return
				}
			}
			if err := d.Flush(); err != nil {
				t.Error(err)
			}
			got := make([]byte, part)
			if _, err := d.ReadAt(got, p*part); err != nil || !bytes.Equal(got, model) {
				t.Errorf("part %d: %v, or other bytes than written", p, err)
			}
		})
	}
	wg.Wait()
	ext, err := d.Extents(0, info.Size)
	if err != nil {
		t.Fatal(err)
	}
	var at int64
	for _, e := range ext {
		buf := make([]byte, e.Length)
		if e.Offset != at {
			t.Fatalf("extent at %d, want %d", e.Offset, at)
		}
		if _, err := d.ReadAt(buf, at); err != nil {
			t.Fatal(err)
		}
		if e.Zero && len(bytes.TrimLeft(buf, "\x00")) > 0 {
			t.Errorf("extent %+v is not zero", e)
		}
		at += e.Length
	}
	if at != info.Size {
		t.Errorf("extents end at %d of %d", at, info.Size)
	}
	if _, err := d.ReadAt(make([]byte, 4096), info.Size); !errors.Is(err, blockdev.ErrRange) {
		t.Errorf("read past the end: %v", err)
	}
}

func TestClientOwnServer(t *testing.T) {
	backends(t, func(t *testing.T, noRing bool, mem func(int) *memory) {
		sock := start(t, testServer(mem(48<<20), noRing))
		c := dial(t, "nbd+unix:///vol?socket="+sock, Options{})
		if i := c.Info(); i.Size != 48<<20 || i.BlockSize != 512 || i.ReadOnly || i.Name != "nbd+unix:///vol?socket="+sock {
			t.Errorf("info %+v", i)
		}
		exercise(t, c)
	})
}

func TestClientQemuNbd(t *testing.T) {
	need(t, "qemu-nbd", "qemu-img")
	dir := t.TempDir()
	sock, file := filepath.Join(dir, "s"), filepath.Join(dir, "raw")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 80<<20); err != nil {
		t.Fatal(err)
	}
	spawn(t, sock, "qemu-nbd", "-k", sock, "-f", "raw", "-t", "-e", "4", "-x", "a disk/1", "--discard=unmap", file)
	c := dial(t, "nbd+unix:///a%20disk/1?socket="+sock, Options{})
	ext, err := c.Extents(0, c.Info().Size)
	if err != nil || len(ext) != 1 || !ext[0].Zero {
		t.Errorf("extents of an empty file: %v, %v", ext, err)
	}
	exercise(t, c)
	_, err = Dial(context.Background(), "nbd+unix:///other?socket="+sock, Options{})
	if err == nil || !strings.Contains(err.Error(), "/other?") || !strings.Contains(err.Error(), "no such export") {
		t.Errorf("a wrong export: %v", err)
	}
}

func TestClientNbdkit(t *testing.T) {
	need(t, "nbdkit")
	dir := t.TempDir()
	sock := filepath.Join(dir, "s")
	uri := "nbd+unix:///?socket=" + sock
	t.Run("memory", func(t *testing.T) {
		spawn(t, sock, "nbdkit", "-f", "-U", sock, "memory", "48M")
		exercise(t, dial(t, uri, Options{}))
	})
	t.Run("tcp", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		socket, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		// As systemd would start it: nobody else can have taken the port meanwhile.
		cmd := exec.Command("sh", "-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec nbdkit -f memory 8M")
		cmd.ExtraFiles = []*os.File{socket}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			cmd.Process.Kill()
			cmd.Wait()
		}()
		exercise(t, dial(t, fmt.Sprintf("nbd://%s/", l.Addr()), Options{}))
	})
	t.Run("old", func(t *testing.T) { // no structured replies
		spawn(t, sock, "nbdkit", "-f", "--no-sr", "-U", sock, "memory", "8M")
		exercise(t, dial(t, uri, Options{}))
	})
	t.Run("pattern", func(t *testing.T) {
		spawn(t, sock, "nbdkit", "-f", "-U", sock, "pattern", "72M")
		c := dial(t, uri, Options{})
		if !c.Info().ReadOnly {
			t.Error("the pattern is not read-only")
		}
		buf := make([]byte, 70<<20) // more than one request
		if _, err := c.ReadAt(buf, 1<<20); err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{0, 8, 32 << 20, 64<<20 + 800, 70<<20 - 8} {
			want := uint64(1<<20 + at)
			if got := beUint64(buf[at:]); got != want {
				t.Errorf("at %d: %#x, want %#x", at, got, want)
			}
		}
		if _, err := c.WriteAt(buf[:512], 0); !errors.Is(err, blockdev.ErrReadOnly) {
			t.Errorf("write: %v", err)
		}
	})
	t.Run("blocksize", func(t *testing.T) { // a server that wants 64 KiB gets 64 KiB
		spawn(t, sock, "nbdkit", "-f", "-U", sock, "--filter=blocksize-policy", "memory", "8M",
			"blocksize-minimum=64k", "blocksize-preferred=64k", "blocksize-maximum=1M", "blocksize-error-policy=error")
		c := dial(t, uri, Options{})
		if c.Info().BlockSize != 4096 {
			t.Errorf("block size %d", c.Info().BlockSize)
		}
		exercise(t, c)
	})
	t.Run("error", func(t *testing.T) {
		spawn(t, sock, "nbdkit", "-f", "-U", sock, "--filter=error", "memory", "8M",
			"error-pwrite=ENOSPC", "error-pwrite-rate=100%", "error-zero=EPERM", "error-zero-rate=100%")
		c := dial(t, uri, Options{})
		if _, err := c.WriteAt(make([]byte, 4096), 0); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), uri) {
			t.Errorf("write: %v", err)
		}
		if err := c.WriteZeroes(0, 4096, true); !errors.Is(err, unix.EPERM) {
			t.Errorf("zeroes: %v", err)
		}
		if _, err := c.ReadAt(make([]byte, 4096), 0); err != nil {
			t.Errorf("read after errors: %v", err)
		}
	})
	t.Run("hangs", func(t *testing.T) {
		// Where several of its threads answer who has gone, nbdkit 1.32 may abort itself.
		spawn(t, sock, "nbdkit", "-f", "-t", "1", "-U", sock, "--filter=delay", "memory", "8M", "rdelay=300")
		c := dial(t, uri, Options{})
		c.opts.Timeout = time.Second
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				_, err := c.ReadAt(make([]byte, 4096), 0)
				if !errors.Is(err, errTimeout) || !strings.Contains(err.Error(), uri) {
					t.Errorf("read of a server that hangs: %v", err)
				}
			})
		}
		wg.Wait()
		until(t, "a write, on a new connection", func() bool {
			_, err := c.WriteAt(make([]byte, 4096), 0)
			return err == nil
		})
	})
	t.Run("killed", func(t *testing.T) {
		args := []string{"-f", "-U", sock, "memory", "8M"}
		kill := spawn(t, sock, "nbdkit", args...)
		c := dial(t, uri, Options{Timeout: 30 * time.Second})
		buf := make([]byte, 4096)
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		kill()
		if _, err := c.ReadAt(buf, 0); err == nil || !strings.Contains(err.Error(), uri) {
			t.Errorf("read of a dead server: %v", err)
		}
		kill = spawn(t, sock, "nbdkit", args...)
		if _, err := c.ReadAt(buf, 0); err != nil {
			t.Errorf("read after its restart: %v", err)
		}
		if err := c.Flush(); err != nil {
			t.Errorf("flush, with nothing lost: %v", err)
		}
		if _, err := c.WriteAt(buf, 0); err != nil {
			t.Fatal(err)
		}
		kill()
		kill = spawn(t, sock, "nbdkit", args...)
		until(t, "the broken connection is noticed", func() bool {
			_, err := c.ReadAt(buf, 0)
			return err == nil
		})
		for range 2 {
			if err := c.Flush(); !errors.Is(err, errLost) {
				t.Errorf("flush after a write was lost: %v", err)
			}
		}
		kill()
		spawn(t, sock, "nbdkit", "-f", "-U", sock, "memory", "4M")
		until(t, "the other size is noticed", func() bool {
			_, err := c.ReadAt(buf, 0)
			return err != nil && strings.Contains(err.Error(), "the export is another")
		})
	})
}

func beUint64(b []byte) (v uint64) {
	for _, x := range b[:8] {
		v = v<<8 | uint64(x)
	}
	return v
}

func TestDialErrors(t *testing.T) {
	dir := t.TempDir()
	silent, err := net.Listen("unix", filepath.Join(dir, "silent"))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	go func() {
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	for uri, want := range map[string]string{
		"http://x/":                         "want nbd+unix",
		"nbds://x/":                         "TLS",
		"nbd:///x":                          "HOST",
		"nbd+unix:///x":                     "socket=PATH",
		"nbd+unix:///x?socket=/nonexistent": "no such file",
		"nbd+unix:///?socket=" + filepath.Join(dir, "silent"): "",
		"nbd://[":            "NBD address",
		"nbd://127.0.0.1:1/": "refused",
	} {
		patience := time.Minute
		if strings.Contains(uri, "silent") {
			patience = 200 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		_, err := Dial(ctx, uri, Options{})
		cancel()
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), uri) ||
			errors.Is(err, context.DeadlineExceeded) != (want == "") {
			t.Errorf("%s: %v, want %q", uri, err, want)
		}
	}
}

func TestClientClose(t *testing.T) {
	m := newMemory(1 << 20)
	m.detached, m.hold = true, make(chan struct{})
	sock := start(t, testServer(m, false))
	c := dial(t, "nbd+unix:///?socket="+sock, Options{})
	failed := make(chan error)
	go func() {
		_, err := c.ReadAt(make([]byte, 512), 0)
		failed <- err
	}()
	until(t, "the read arrived", func() bool { return m.live.Load() == 1 })
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read during Close: %v", err)
	}
	if _, err := c.ReadAt(make([]byte, 512), 0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read after Close: %v", err)
	}
	if err := c.Close(); err == nil {
		t.Error("the second Close returned nil")
	}
	close(m.hold)
}
