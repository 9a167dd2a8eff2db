package main

import (
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"
)

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, c := range []struct {
		args string
		says string
	}{
		{"", "expected one of"},
		{"--nope", "unknown flag --nope"},
		{"store", `"create", "size", "info", "verify", "dump"`},
		{"store create", `expected "<store>"`},
		{"store create s", "say what to make: --master, --size, or both"},
		{"store create --nope s", "Try: virt-cow store create --help"},
		{"store create --size 1x s", "write bytes, or a whole number with K, M, G or T"},
		{"store create --size 1.5G s", "whole number"},
		{"store create --size G s", "whole number"},
		{"store create --size=-1G s", "whole number"},
		{"store create --size 9E s", "too large"},
		{"store create --size 99999999999999999999 s", "too large"},
		{"store create --size 65T s", "the largest volume has 64 TiB"},
		{"store create --size 1000 s", "not a multiple of 512"},
		{"store create --size 1M --chunk 3K s", "a power of two from 4 KiB to 1 MiB"},
		{"store create --size 1M --chunk 2K s", "a power of two from 4 KiB to 1 MiB"},
		{"store create --size 1M --chunk 2M s", "a power of two from 4 KiB to 1 MiB"},
		{"store create --size 1M --name ../x s", "give one with --name"},
		{"store create --size 1M .hidden", "give one with --name"},
		{"store info", `expected "<store>"`},
		{"store info a b", "unexpected argument b"},
		{"serve s", "a store and --socket, or --spec"},
		{"serve --socket u --lock-wait x s", "--lock-wait"},
		{"serve --socket u --rate=-4 s", "whole number"},
		{"serve --socket u --host-uuid zz s", "host UUID"},
	} {
		args := strings.Fields(c.args)
		b.run(args...).exits(exitUsage).says("virt-cow: ", c.says)
	}
	if names := b.names(); names != "" {
		t.Errorf("left behind: %s", names)
	}
}

// /etc/default/virt-cow may have it empty, or anything: an engine that ends with exit code 2 is not started again.
func TestDebugVariable(t *testing.T) {
	for _, value := range []string{"", "0", "off", "1", "on", "2"} {
		t.Setenv("VIRT_COW_DEBUG", value)
		var out, err strings.Builder
		if code := run([]string{"config", "example"}, &out, &err); code != 0 {
			t.Errorf("VIRT_COW_DEBUG=%q: exit code %d: %s", value, code, &err)
		}
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run("--version").exits(0)
	for command, says := range map[string]string{
		"":             "store create",
		"store create": "--chunk=SIZE",
		"store info":   "without virt-cow",
		"store verify": "--no-master",
		"store dump":   "damaged ones too",
		"serve":        "(default 10s)",
	} {
		b.run(append(strings.Fields(command), "--help")...).exits(0).says("Usage: virt-cow", says)
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"0": 0, "512": 512, "64K": 64 << 10, "64k": 64 << 10, "512M": 512 << 20, "10G": 10 << 30, "2T": 2 << 40,
		"1P": 1 << 50, "7E": 7 << 60, "10GiB": 10 << 30, "10GB": 10 << 30, " 1M ": 1 << 20, "9223372036854775807": math.MaxInt64,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "K", "B", "iB", "8E", "9223372036854775808", "1_000", "0x10", "-1", "+1", "1KK", "1 K"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q: taken for %d", text, got)
		}
	}
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1 MiB", 10 << 30: "10 GiB",
		64 << 40: "64 TiB", math.MaxInt64: "8 EiB",
	} {
		if got := formatSize(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestJSONOfAllCommands(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.image("m.raw", mib)
	var created, info storeInfo
	b.run("--json", "store", "create", "--master", b.path("m.raw"), "--chunk", "64K", b.path("c.vcow")).exits(0).json(&created)
	b.run("store", "info", "--json", b.path("c.vcow")).exits(0).json(&info)
	if created.UUID != info.UUID || info.Name != "c" || info.Size != mib || info.ChunkSize != 64<<10 || info.Master != b.path("m.raw") {
		t.Errorf("created %+v\nfound %+v", created, info)
	}
	var v verdict
	b.run("--json", "store", "verify", b.path("c.vcow")).exits(0).json(&v)
	if !v.OK || v.Chunks != 16 || v.Set != 0 {
		t.Errorf("verdict %+v", v)
	}
	s := b.serve("c.vcow", "--json")
	dev := s.dial()
	write(t, dev, noise(1, 4096), 70<<10)
	flush(t, dev)
	dev.Close()
	s.stop()
	for line := range strings.Lines(s.log.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("serve --json logs %q", line)
		}
	}
	var d struct {
		Header map[string]any
		Here   []chunkRun
	}
	b.run("--json", "store", "dump", b.path("c.vcow")).exits(0).json(&d)
	if len(d.Here) != 1 || d.Here[0] != (chunkRun{1, 1}) || d.Header["Name"] != "c" {
		t.Errorf("dump %+v", d)
	}
	b.run("store", "dump", b.path("c.vcow")).exits(0).says("Name            c\n", "table: 16 chunks", "\n  1 +1\n")
	b.run("store", "info", b.path("c.vcow")).exits(0).says("volume   c\n", "owner    none: closed", "opened 1 time\n")
	b.run("store", "verify", b.path("c.vcow")).exits(0).says("ok, 1 of 16 chunks")
}

func TestReadingWhatIsNoStore(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.image("m.raw", mib)
	for _, command := range []string{"info", "verify", "dump"} {
		b.run("store", command, b.path("m.raw")).exits(exitFailed).says(b.path("m.raw"), "not a virt-cow store")
		b.run("store", command, b.path("nothing")).exits(exitFailed).says("no such file")
		b.run("store", command, b.dir).exits(exitFailed).says("neither a regular file nor a block device")
	}
	b.run("serve", "--socket", b.path("s"), b.path("m.raw")).exits(exitFailed).says("not a virt-cow store")
	if _, err := os.Lstat(b.path("s")); err == nil {
		t.Error("a socket was left")
	}
}
