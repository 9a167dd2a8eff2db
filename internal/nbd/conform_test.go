package nbd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What real clients make of the server.

func backends(t *testing.T, f func(t *testing.T, noRing bool, make func(size int) *memory)) {
	eachLoop(t, func(t *testing.T, noRing bool) {
		for _, detached := range []bool{false, true} {
			t.Run(fmt.Sprintf("detached=%v", detached), func(t *testing.T) {
				f(t, noRing, func(size int) *memory {
					m := newMemory(size)
					m.detached = detached
					return m
				})
			})
		}
	})
}

func TestNbdinfo(t *testing.T) {
	need(t, "nbdinfo")
	eachLoop(t, func(t *testing.T, noRing bool) {
		m := newMemory(8 << 20)
		copy(m.data[1<<20:], "data")
		s := testServer(m, noRing)
		s.Description = "a disk"
		sock := start(t, s)
		uri := "nbd+unix:///vol?socket=" + sock

		var info struct {
			Exports []struct {
				Name        string `json:"export-name"`
				Description string
				Contexts    []string
				Size        int64 `json:"export-size"`
				ReadOnly    bool  `json:"is_read_only"`
				MultiConn   bool  `json:"can_multi_conn"`
				FUA         bool  `json:"can_fua"`
				DF          bool  `json:"can_df"`
				Fast        bool  `json:"can_fast_zero"`
				Trim        bool  `json:"can_trim"`
				Zero        bool  `json:"can_zero"`
				Min         int   `json:"block_size_minimum"`
				Prefer      int   `json:"block_size_preferred"`
				Max         int   `json:"block_size_maximum"`
			}
		}
		for _, arg := range []string{"--json", "--list"} {
			if err := json.Unmarshal([]byte(sh(t, "nbdinfo", "--json", arg, uri)), &info); err != nil {
				t.Fatal(err)
			}
			e := info.Exports[0]
			if len(info.Exports) != 1 || e.Size != 8<<20 || e.ReadOnly || !e.MultiConn || !e.FUA ||
				!e.DF || e.Fast || !e.Trim || !e.Zero || e.Min != 512 || e.Prefer != 4096 || e.Max != 32<<20 ||
				len(e.Contexts) != 1 || e.Contexts[0] != "base:allocation" {
				t.Errorf("nbdinfo %s: %+v", arg, info)
			}
		}
		if info.Exports[0].Name != "vol" || info.Exports[0].Description != "a disk" {
			t.Errorf("listed as %+v", info.Exports[0])
		}
		got := strings.Fields(sh(t, "nbdinfo", "--map", "nbd+unix:///?socket="+sock))
		want := strings.Fields("0 1048576 3 hole,zero  1048576 65536 0 data  1114112 7274496 3 hole,zero")
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("map %q, want %q", got, want)
		}
		m2 := newMemory(1 << 20)
		m2.readOnly = true
		sock = start(t, testServer(m2, noRing))
		if out := sh(t, "nbdinfo", "--json", "nbd+unix:///?socket="+sock); !strings.Contains(out, `"is_read_only": true`) {
			t.Errorf("a read-only volume: %s", out)
		}
	})
}

func fillRandom(p []byte, seed uint64) {
	r := rand.NewChaCha8([32]byte{byte(seed)})
	r.Read(p)
}

func TestNbdcopyAndQemuImg(t *testing.T) {
	need(t, "nbdcopy", "qemu-img")
	backends(t, func(t *testing.T, noRing bool, mem func(int) *memory) {
		const size = 24 << 20
		file := filepath.Join(t.TempDir(), "raw")
		data := make([]byte, size)
		fillRandom(data, 1)
		clear(data[4<<20 : 9<<20])
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		m := mem(size)
		sock := start(t, testServer(m, noRing))
		uri := "nbd+unix:///vol?socket=" + sock
		m.change(func(b []byte) { fillRandom(b, 2) })
		sh(t, "nbdcopy", "--flush", file, uri)
		if !bytes.Equal(m.content(), data) {
			t.Error("nbdcopy to the server left other bytes")
		}
		if m.flushes.Load() == 0 {
			t.Error("nbdcopy --flush brought no flush")
		}
		back := file + ".back"
		sh(t, "nbdcopy", uri, back)
		got, err := os.ReadFile(back)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("nbdcopy from the server: %v, or other bytes", err)
		}
		sh(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, uri)
		m.change(func(b []byte) { clear(b) })
		sh(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, uri)
		if !bytes.Equal(m.content(), data) {
			t.Error("qemu-img convert to the server left other bytes")
		}
		sh(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, back)
		if got, err = os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
			t.Errorf("qemu-img convert from the server: %v, or other bytes", err)
		}
	})
}

func TestQemuIO(t *testing.T) {
	need(t, "qemu-io")
	backends(t, func(t *testing.T, noRing bool, mem func(int) *memory) {
		m := mem(80 << 20)
		sock := start(t, testServer(m, noRing))
		out := sh(t, "qemu-io", "-f", "raw", "-d", "unmap", "nbd+unix:///vol?socket="+sock,
			"-c", "write -P 0x11 0 40M", "-c", "write -f -P 0x22 4k 8k", "-c", "write -z -f 64k 64k",
			"-c", "write -z -u 192k 64k", "-c", "discard 256k 128k", "-c", "flush",
			"-c", "write -P 0x33 1536 512", "-c", "read -P 0x33 1536 512",
			"-c", "aio_write -P 0x44 1M 3M", "-c", "aio_write -P 0x55 8M 3M", "-c", "aio_flush",
			"-c", "read -P 0x44 1M 3M", "-c", "read -P 0x55 8M 3M", "-c", "read -P 0x22 4k 8k",
			"-c", "read -P 0 64k 64k", "-c", "read -P 0 192k 64k", "-c", "read -P 0x11 12M 28M")
		if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
			t.Errorf("qemu-io:\n%s", out)
		}
		if m.fua.Load() < 2 || m.noHole.Load() == 0 || m.trims.Load() == 0 || m.zeroes.Load() < 2 || m.flushes.Load() == 0 {
			t.Errorf("fua %d, no-hole %d, trims %d, zeroes %d, flushes %d", m.fua.Load(), m.noHole.Load(),
				m.trims.Load(), m.zeroes.Load(), m.flushes.Load())
		}
		content := m.content()
		for _, c := range []struct {
			at   int
			want byte
		}{{0, 0x11}, {1536, 0x33}, {4096, 0x22}, {64 << 10, 0}, {300 << 10, 0}, {2 << 20, 0x44}, {9 << 20, 0x55}, {30 << 20, 0x11}} {
			if got := content[c.at]; got != c.want {
				t.Errorf("byte %d is %#x, want %#x", c.at, got, c.want)
			}
		}
	})
}

// fio with its own verification: what comes back must be what was written, in whatever sizes.
func TestFioVerify(t *testing.T) {
	need(t, "fio")
	run := func(t *testing.T, b Backend, noRing bool) {
		sock := start(t, testServer(b, noRing))
		out := sh(t, "fio", "--ioengine=nbd", "--uri=nbd+unix:///vol?socket="+sock, "--size=64m", "--thread",
			"--output-format=terse", "--verify_fatal=1", "--verify_state_save=0", "--randrepeat=1", "--verify=crc32c", "--do_verify=1",
			"--name=mixed", "--rw=randwrite", "--bsrange=512-128k", "--blockalign=512", "--iodepth=32",
			"--io_size=48m", "--verify_backlog=64",
			"--name=trims", "--stonewall", "--rw=randtrimwrite", "--bs=64k", "--iodepth=16", "--io_size=24m", "--serialize_overlap=1")
		if strings.Contains(out, "verify:") {
			t.Errorf("fio: %s", out)
		}
	}
	backends(t, func(t *testing.T, noRing bool, mem func(int) *memory) { run(t, mem(64<<20), noRing) })
	eachLoop(t, func(t *testing.T, noRing bool) {
		t.Run("file", func(t *testing.T) { run(t, newFileBackend(t, 64<<20), noRing) })
	})
}
