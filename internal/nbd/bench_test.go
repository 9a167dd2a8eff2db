package nbd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkFio has fio read 4 KiB at random and reports requests a second and the server's CPU time a
// request. NBD_BENCH_SECONDS is how long each case runs, 2 unless set. The other servers are there for
// comparison, on the same machine in the same minute.
func BenchmarkFio(b *testing.B) {
	need(b, "fio")
	const size = 1 << 30
	own := func(noRing bool, backend func(b *testing.B) Backend) func(b *testing.B) (string, func() time.Duration) {
		return func(b *testing.B) (string, func() time.Duration) {
			return start(b, testServer(backend(b), noRing)), ownCPU
		}
	}
	mem := func(*testing.B) Backend { return newMemory(64 << 20) }
	detached := func(*testing.B) Backend {
		m := newMemory(64 << 20)
		m.detached = true
		return m
	}
	file := func(b *testing.B) Backend { return newFileBackend(b, size) }
	for _, c := range []struct {
		name  string
		start func(b *testing.B) (sock string, cpu func() time.Duration)
	}{
		{"memory/ring", own(false, mem)},
		{"memory/plain", own(true, mem)},
		{"memory/nbdkit", other("nbdkit", "-f", "-U", "SOCK", "memory", "64M")},
		{"detached/ring", own(false, detached)},
		{"detached/plain", own(true, detached)},
		{"file/ring", own(false, file)},
		{"file/plain", own(true, file)},
		{"file/nbdkit", other("nbdkit", "-f", "-U", "SOCK", "file", "FILE")},
		{"file/qemu-nbd", other("qemu-nbd", "-k", "SOCK", "-f", "raw", "-t", "--cache=none", "--aio=io_uring", "FILE")},
	} {
		for _, depth := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/depth=%d", c.name, depth), func(b *testing.B) {
				sock, cpu := c.start(b)
				before := cpu()
				n, rate, lat := fio(b, sock, depth)
				used := cpu() - before
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(rate, "req/s")
				b.ReportMetric(float64(used.Nanoseconds())/1e3/n, "cpu-us/req")
				b.ReportMetric(lat/1e3, "lat-us")
			})
		}
	}
}

func fio(b *testing.B, sock string, depth int) (requests, rate, latency float64) {
	seconds := os.Getenv("NBD_BENCH_SECONDS")
	if seconds == "" {
		seconds = "2"
	}
	bs := os.Getenv("NBD_BENCH_BS")
	if bs == "" {
		bs = "4k"
	}
	rw := os.Getenv("NBD_BENCH_RW")
	if rw == "" {
		rw = "randread"
	}
	out, err := exec.Command("fio", "--ioengine=nbd", "--uri=nbd+unix:///?socket="+sock, "--thread", "--name=b",
		"--rw="+rw, "--bs="+bs, "--size=64m", "--time_based", "--runtime="+seconds, "--iodepth="+fmt.Sprint(depth),
		"--output-format=json", "--output="+sock+".json").CombinedOutput()
	if err != nil {
		b.Fatalf("fio: %v\n%s", err, out)
	}
	defer os.Remove(sock + ".json")
	text, err := os.ReadFile(sock + ".json")
	if err != nil {
		b.Fatal(err)
	}
	type side struct {
		IOPS  float64
		Total float64                `json:"total_ios"`
		Lat   struct{ Mean float64 } `json:"lat_ns"`
	}
	var r struct{ Jobs []struct{ Read, Write side } }
	text = text[max(0, bytes.Index(text, []byte("{\n"))):] // words of the engine come first
	if err := json.Unmarshal(text, &r); err != nil {
		b.Fatal(err)
	}
	j := r.Jobs[0]
	return j.Read.Total + j.Write.Total, j.Read.IOPS + j.Write.IOPS, max(j.Read.Lat.Mean, j.Write.Lat.Mean)
}

func ownCPU() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// other starts another server; SOCK and FILE in its arguments are replaced.
func other(name string, args ...string) func(b *testing.B) (string, func() time.Duration) {
	return func(b *testing.B) (string, func() time.Duration) {
		need(b, name)
		dir, err := os.MkdirTemp("", "nbd")
		if err != nil {
			b.Fatal(err)
		}
		sock, file := filepath.Join(dir, "s"), filepath.Join(dir, "f")
		a := make([]string, len(args))
		for i := range args {
			a[i] = strings.NewReplacer("SOCK", sock, "FILE", file).Replace(args[i])
			if args[i] == "FILE" {
				sh(b, "cp", fileOf(newFileBackend(b, 1<<30)), file)
			}
		}
		cmd := exec.Command(name, a...)
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
			os.RemoveAll(dir)
		})
		until(b, name+" listens", func() bool { _, err := os.Stat(sock); return err == nil })
		return sock, func() time.Duration { return procCPU(b, cmd.Process.Pid) }
	}
}

func fileOf(f *fileBackend) string {
	name, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.fd))
	return name
}

// procCPU is the CPU time of a process, in ticks of 10 ms.
func procCPU(b *testing.B, pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+2:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}
