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
	fmt.Println("held", h.pid(), h.Dir)
	select {}
}

// holdSite is what hold does with a site: a guest on a disk, on its way from one host to the other.
func holdSite() {
	ctx := context.Background()
	err := func() error {
		s, err := NewSite(ctx, SiteConfig{})
		if err != nil {
			return err
		}
		d, err := s.NewDisk(DiskConfig{Name: "held", Size: 1 << 20})
		if err != nil {
			return err
		}
		g, err := s.Hosts[0].Define(ctx, GuestConfig{Name: "held", Devices: diskXML(d, "vda")})
		if err != nil {
			return err
		}
		if err := g.Boot(ctx); err != nil {
			return err
		}
		if err := g.LimitMigration(ctx, 1); err != nil {
			return err
		}
		go g.Migrate(ctx, s.Hosts[1])
		if err := g.AwaitMemory(ctx); err != nil {
			return err
		}
		for _, h := range append(s.Hosts, s.Admin) {
			fmt.Println("held", h.pid(), s.Dir)
		}
		return nil
	}()
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	select {}
}

// loopsOf are the loop devices over files of a folder.
func loopsOf(t *testing.T, dir string) []string {
	t.Helper()
	backs, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, p := range backs {
		if b, _ := os.ReadFile(p); strings.HasPrefix(string(b), dir) {
			left = append(left, p+" "+strings.TrimSpace(string(b)))
		}
	}
	return left
}

func TestKilledMakerLeavesNothingOfASite(t *testing.T) {
	if err := Check(); err != nil {
		SkipOrFail(t, err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdEnv+"=site")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	r := bufio.NewReader(out)
	spaces := make([]string, 3)
	var dir string
	for i := range spaces {
		line, err := r.ReadString('\n')
		f := strings.Fields(line)
		if err != nil || len(f) != 3 || f[0] != "held" {
			t.Fatal(line, err)
		}
		pid, err := strconv.Atoi(f[1])
		must(t, err)
		spaces[i], dir = pidNamespace(t, pid), f[2]
	}
	left := func() []string {
		l := loopsOf(t, dir)
		for _, ns := range spaces {
			l = append(l, traces(t, ns, dir)...)
		}
		return l
	}
	if l := strings.Join(left(), "\n"); strings.Count(l, "qemu-system") < 2 || strings.Count(l, "held.disk") < 2 {
		t.Fatalf("no guest moves on its disk: %s", l)
	}
	cmd.Process.Kill()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		l := left()
		if len(l) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind a minute after its maker was killed: %q", l)
		}
	}
}

func TestCloseOfASiteLeavesNothing(t *testing.T) {
	s := SiteFor(t, SiteConfig{Host: Config{Log: t.Output()}})
	_, err := s.NewDisk(DiskConfig{Name: "one", Size: 1 << 20})
	must(t, err)
	if n := len(loopsOf(t, s.Dir)); n != 2 {
		t.Fatalf("%d loop devices", n)
	}
	var spaces []string
	for _, h := range append(s.Hosts, s.Admin) {
		spaces = append(spaces, pidNamespace(t, h.pid()))
	}
	must(t, s.Close())
	var left []string
	for _, ns := range spaces {
		left = append(left, traces(t, ns, s.Dir)...)
	}
	loops := loopsOf(t, s.Dir)
	for deadline := time.Now().Add(time.Minute); len(loops) > 0 && time.Now().Before(deadline); loops = loopsOf(t, s.Dir) {
		time.Sleep(100 * time.Millisecond) // udev may be looking at them
	}
	if left = append(left, loops...); len(left) > 0 {
		t.Fatalf("left behind: %q", left)
	}
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
	ns := pidNamespace(t, h.pid())
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
