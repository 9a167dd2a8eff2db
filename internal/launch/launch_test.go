package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
)

// The test binary is the engine too: it listens on its spec's control socket until SIGTERM, then fails.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[len(os.Args)-2] == "--spec" {
		if err := engine(os.Args[len(os.Args)-1]); err != nil {
			fmt.Fprintf(os.Stderr, "virt-cow: %v\n", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func engine(specPath string) error {
	b, err := os.ReadFile(specPath)
	if err != nil {
		return err
	}
	var spec api.EngineSpec
	if err := json.Unmarshal(b, &spec); err != nil {
		return err
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	l, err := net.Listen("unix", spec.Control)
	if err != nil {
		return err
	}
	defer l.Close()
	<-asked
	return errors.New("no room to flush to")
}

// wait bounds what is bound to happen.
const wait = time.Minute

func ended(t *testing.T, p *Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(wait):
		t.Fatalf("process %d does not end", p.PID)
	}
}

func newSpec(t *testing.T) (*api.EngineSpec, string) {
	t.Helper()
	dir := t.TempDir()
	spec := &api.EngineSpec{Version: api.SpecVersion, Volume: "v-1", Control: filepath.Join(dir, "v-1.ctl")}
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "v-1"+api.SpecSuffix)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return spec, path
}

func TestChild(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	spec, path := newSpec(t)
	dir := filepath.Dir(path)
	l := NewChild(self, dir, dir)
	if l.Name() != ChildName {
		t.Errorf("name %s", l.Name())
	}
	p, err := l.Start(t.Context(), spec, path)
	if err != nil {
		t.Fatal(err)
	}
	defer ended(t, p)
	defer p.Terminate()
	if sid, err := unix.Getsid(p.PID); err != nil || sid != p.PID {
		t.Errorf("session %d of process %d: %v", sid, p.PID, err)
	}
	var adopted *Process
	for deadline := time.Now().Add(wait); adopted == nil; time.Sleep(10 * time.Millisecond) {
		if adopted, err = Adopt(spec.Control); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatal("it never listens")
		}
	}
	if adopted.PID != p.PID {
		t.Fatalf("adopted %d, not %d", adopted.PID, p.PID)
	}
	again, err := l.Start(t.Context(), spec, path)
	if err != nil || again.PID != p.PID {
		t.Fatalf("started a second time: %+v %v", again, err)
	}
	adopted.Terminate()
	ended(t, p)
	ended(t, adopted)
	ended(t, again)
	if why := p.Why(); !strings.Contains(why, "exit status 1: no room to flush to") {
		t.Errorf("why: %s", why)
	}
	p.Terminate() // harmless
	adopted.Terminate()
	if err := l.Gone(t.Context(), spec.Volume); err != nil {
		t.Error(err)
	}
}

func TestAdoptNobody(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.ctl")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, path := range []string{stale, filepath.Join(dir, "none.ctl")} {
		if p, err := Adopt(path); p != nil || err != nil {
			t.Errorf("%s: %+v %v", path, p, err)
		}
	}
	if p, err := Adopt(strings.Repeat("x", 200)); p != nil || err == nil {
		t.Errorf("a path that is no socket's: %+v %v", p, err)
	}
}

func TestLastLine(t *testing.T) {
	const before = "virt-cow: of an earlier engine\n"
	for _, c := range []struct{ name, text, want string }{
		{"said why", before + "{}\nvirt-cow: no such store\n", "exit status 1: no such store"},
		{"said nothing", before, "exit status 1"},
		{"only logged", before + "{\"level\":\"info\"}\n", "exit status 1"},
		{"truncated", "virt-cow: short\n", "exit status 1: short"},
		{"long", before + strings.Repeat("{}\n", maxSaid) + "virt-cow: at the end\n", "exit status 1: at the end"},
	} {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastLine(path, int64(len(before)), errors.New("exit status 1")); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestDevicesAllowed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	more := map[string]string{"2": "/dev/mapper/snap2", "1": "/dev/mapper/snap1", "3": file}
	if got := devicesAllowed(&api.EngineSpec{Store: file, Snapshots: more}); len(got) != 2 || got[0].Path != "/dev/mapper/snap1" || got[1].Path != "/dev/mapper/snap2" {
		t.Errorf("of snapshots: %v", got)
	}
	got := devicesAllowed(&api.EngineSpec{Store: file, Devices: []string{file, "/dev/null", file + ".none", "/dev/../dev/not-yet"}})
	if want := []deviceAllow{{"/dev/not-yet", "rw"}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := devicesAllowed(&api.EngineSpec{Store: file}); got == nil || len(got) != 0 {
		t.Errorf("none: %v", got) // not nil: D-Bus wants an array
	}
	var device string
	var st unix.Stat_t
	for _, d := range []string{"/dev/loop0", "/dev/vda", "/dev/sda", "/dev/nvme0n1"} {
		if unix.Stat(d, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			device = d
			break
		}
	}
	if device == "" {
		t.Skip("SKIPPED: no block device here")
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(device, link); err != nil {
		t.Fatal(err)
	}
	got = devicesAllowed(&api.EngineSpec{Store: device, Devices: []string{device, link}})
	number := fmt.Sprintf("/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if want := []deviceAllow{{device, "rw"}, {number, "rw"}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestEnded(t *testing.T) {
	for _, c := range []struct {
		s    state
		want string
	}{
		{state{last: 7, code: cldExited, result: "success", text: "flushing"}, "exit status 0"},
		{state{last: 7, code: cldExited, status: 1, result: "exit-code", text: "no store"}, "exit status 1: no store"},
		{state{last: 7, code: 2, status: 9, result: "signal", text: "serving"}, "signal: killed"},
		{state{last: 7, code: 2, status: 15, result: "timeout"}, "signal: terminated (timeout)"},
		{state{result: "assert"}, "no process was started (assert)"},
	} {
		if got := c.s.ended(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.s, got, c.want)
		}
	}
}

func TestUnitOfGroups(t *testing.T) {
	for groups, want := range map[string]string{
		"0::/virtcow.slice/virt-cow-volume@a-b.service\n":                 "virt-cow-volume@a-b.service",
		"9:pids:/x\n1:name=systemd:/s/virt-cow-volume@v.service\n0::/x\n": "virt-cow-volume@v.service",
		"0::/system.slice/virt-cow.service\n":                             "",
		"":                                                                "",
	} {
		if got := unitOfGroups(groups); got != want {
			t.Errorf("%q: %q, want %q", groups, got, want)
		}
	}
}

func TestNew(t *testing.T) {
	for _, c := range []struct {
		setting, name string
		err           error
	}{
		{setting: ChildName, name: ChildName},
		{setting: AutoSetting, name: ChildName}, // the run folder is not the units'
		{setting: SystemdName, err: ErrNoSystemd},
	} {
		l, err := New(t.Context(), Config{Launcher: c.setting, RunDir: t.TempDir()}, zerolog.Nop())
		if !errors.Is(err, c.err) || err == nil && l.Name() != c.name {
			t.Errorf("%s: %v %v", c.setting, l, err)
		}
	}
	if _, err := New(t.Context(), Config{Launcher: "upstart"}, zerolog.Nop()); err == nil {
		t.Error("any launcher will do")
	}
}
