package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// hookBed has what the hook meets: the script, the program by its name, and a daemon in some state.
type hookBed struct {
	*bench
	script  string
	envPath string // PATH with the program in it
}

func newHookBed(t *testing.T) *hookBed {
	t.Helper()
	b := &hookBed{bench: newBench(t)}
	b.script, b.envPath = b.path("qemu"), filepath.Dir(program)+":/usr/bin:/bin"
	text, err := os.ReadFile("../../hooks/qemu")
	if err == nil {
		err = os.WriteFile(b.script, text, 0o755)
	}
	for _, dir := range []string{b.dir, filepath.Dir(program)} { // the hook is also run as another user
		err = errors.Join(err, os.Chmod(dir, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A domain with a disk of its own and one NBD disk for each socket.
func hookDomain(name string, sockets ...string) string {
	var disks strings.Builder
	for i, s := range sockets {
		fmt.Fprintf(&disks, `<disk type='network' device='disk'><driver name='qemu' type='raw'/>
<source protocol='nbd' name=''><host transport='unix' socket='%s'/></source><target dev='vd%c' bus='virtio'/></disk>`, s, 'b'+i)
	}
	return `<domain type='qemu'><name>` + name + `</name><uuid>4dea22b3-1d52-48f3-a516-782e98ab3fa0</uuid>
<devices><disk type='file' device='disk'><source file='/images/virt-cow.raw'/><target dev='vda' bus='virtio'/></disk>
` + disks.String() + `</devices></domain>`
}

// hookRun is one run of the hook.
type hookRun struct {
	*exec.Cmd
	stdout, stderr bytes.Buffer
}

// hook makes a run of argv[0] for a daemon with this run folder.
func (b *hookBed) hook(ctx context.Context, runDir, timeout, xml string, argv ...string) *hookRun {
	r := &hookRun{Cmd: exec.CommandContext(ctx, argv[0], argv[1:]...)}
	r.Dir = b.dir
	r.Env = []string{"LC_ALL=C", "PATH=" + b.envPath, "VIRT_COW_RUN_DIR=" + runDir, "VIRT_COW_HOOK_TIMEOUT=" + timeout}
	r.Stdin, r.Stdout, r.Stderr = strings.NewReader(xml), &r.stdout, &r.stderr
	r.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return r
}

// outcome runs to the end and returns the exit code. Nothing may ever be on standard output, and a veto is one line.
func (r *hookRun) outcome(t *testing.T) int {
	t.Helper()
	if err := r.Run(); err != nil && r.ProcessState == nil {
		t.Fatal(err)
	}
	code := r.ProcessState.ExitCode()
	if r.stdout.Len() > 0 {
		t.Errorf("%q: standard output is the domain's XML, and it printed %q", r.Args, &r.stdout)
	}
	said := r.stderr.String()
	switch {
	case code == 0:
	case code != 1 || !strings.HasPrefix(said, "virt-cow: ") || strings.Count(said, "\n") != 1 || !strings.HasSuffix(said, "\n"):
		t.Errorf("%q: exit code %d, and not one line that says who refuses: %q", r.Args, code, said)
	}
	return code
}

// daemonState is a daemon in one of the states of docs/HOOKS.md; what it was asked is in calls.
type daemonState struct {
	name    string
	variant string
	dir     string // run folder
	timeout string // for the hook
	user    uint32 // that the hook runs as

	mu    sync.Mutex
	calls []string
}

func (d *daemonState) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.calls = append(d.calls, r.URL.Path)
	d.mu.Unlock()
	switch d.variant {
	case "slow":
		time.Sleep(2 * time.Second)
		fmt.Fprint(w, `{}`)
	case "error":
		w.WriteHeader(http.StatusConflict)
		fmt.Fprint(w, `{"error":"store /s of volume web1 is open on host\nb since noon"}`)
	case "page":
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(w, strings.Repeat("<html>\n", 1<<18))
	case "garbage":
		fmt.Fprint(w, "\x00]}{")
	case "hangs up":
		panic(http.ErrAbortHandler)
	case "midway":
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, `{"volumes"`)
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	case "silent":
		<-r.Context().Done()
	case "endless":
		for r.Context().Err() == nil {
			fmt.Fprint(w, " ")
			w.(http.Flusher).Flush()
			time.Sleep(50 * time.Millisecond)
		}
	default:
		fmt.Fprint(w, `{}`)
	}
}

func (d *daemonState) called() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

// states are all the ways to be in a state.
var daemonStates = map[string][]string{
	"up": {""}, "slow": {"slow"}, "refuses": {"error", "page"}, "broken": {"garbage", "hangs up", "midway", "not HTTP"},
	"hung": {"silent", "endless", "accepts nothing"}, "down": {"no socket", "stale socket", "no folder"}, "forbidden": {"mode"},
}

// nobody is who may not connect to what is root's.
const nobody = 65534

// daemon makes a daemon in a state; ready says that engines serve the volumes.
func (b *hookBed) daemon(t *testing.T, state, variant string, ready bool) *daemonState {
	t.Helper()
	d := &daemonState{name: state, variant: variant, timeout: "60s"}
	var err error
	if d.dir, err = os.MkdirTemp(b.dir, "run-virt-cow-"); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(d.dir, 0o755))
	if state == "hung" || !ready && (state == "down" || state == "broken") {
		d.timeout = "20s" // a quarter of it is what a daemon is waited for, and what is left for the engines
	}
	switch variant {
	case "no folder":
		must(os.Remove(d.dir))
		return d
	case "no socket":
		return d
	}
	l, err := net.Listen("unix", filepath.Join(d.dir, api.DaemonSocket))
	must(err)
	switch variant {
	case "stale socket":
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		must(l.Close())
		return d
	case "accepts nothing":
		t.Cleanup(func() { l.Close() })
		return d
	case "not HTTP":
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "220 ready\r\n")
				c.Close()
			}
		}()
		t.Cleanup(func() { l.Close() })
		return d
	case "mode":
		must(os.Chmod(filepath.Join(d.dir, api.DaemonSocket), 0))
		if os.Geteuid() == 0 {
			d.user = nobody
		}
	}
	s := &http.Server{Handler: d}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return d
}
