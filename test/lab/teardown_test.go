package lab

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// holdEnv makes this test binary a program that makes a host with a running guest and then waits to be killed.
const holdEnv = "VIRT_COW_LAB_TEST_HOLD"

func hold() {
	h, err := New(context.Background(), Config{})
	if err == nil {
		var g *Guest
		if g, err = h.Define(context.Background(), GuestConfig{Name: "held"}); err == nil {
			err = g.Start(context.Background())
		}
	}
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("held", h.supervisor.Process.Pid, h.Dir)
	select {}
}

// traces finds what is left of a host: processes of its PID namespace, mounts, its folder.
func traces(t *testing.T, pidNS, dir string) []string {
	t.Helper()
	var left []string
	procs, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if ns, err := os.Readlink(p); err == nil && ns == pidNS {
			cmd, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "..", "cmdline"))
			left = append(left, "process "+p+" "+strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(mounts), "\n") {
		if strings.Contains(line, filepath.Base(dir)) {
			left = append(left, "mount "+line)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		left = append(left, "folder "+dir)
	}
	return left
}

func pidNamespace(t *testing.T, pid int) string {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		t.Fatal(err)
	}
	if own, _ := os.Readlink("/proc/self/ns/pid"); own == ns {
		t.Fatal("the supervisor has no PID namespace of its own")
	}
	return ns
}

func TestCloseLeavesNothing(t *testing.T) {
	h := For(t, Config{Log: t.Output()})
	ns := pidNamespace(t, h.supervisor.Process.Pid)
	if _, err := h.Start("sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, ns, h.Dir); len(left) < 4 { // supervisor, libvirtd, sleep, the folder
		t.Fatalf("this test would not see what is left: %q", left)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, ns, h.Dir); len(left) > 0 {
		t.Fatalf("left behind: %q", left)
	}
}

func TestKilledMakerLeavesNothing(t *testing.T) {
	For(t, Config{}) // skips where it must
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	f := strings.Fields(line)
	if err != nil || len(f) != 3 || f[0] != "held" {
		t.Fatal(line, err)
	}
	pid, err := strconv.Atoi(f[1])
	if err != nil {
		t.Fatal(err)
	}
	ns := pidNamespace(t, pid)
	if left := traces(t, ns, f[2]); !strings.Contains(strings.Join(left, "\n"), "qemu-system") {
		t.Fatalf("no guest runs: %q", left)
	}
	cmd.Process.Kill()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		left := traces(t, ns, f[2])
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind a minute after its maker was killed: %q", left)
		}
	}
}
