package serve

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
)

// A process of these tests that connects to a socket, says on its standard output what came of it, and holds the
// connection until its standard input ends.
const peerSocket = "VIRT_COW_TEST_PEER"

func TestMain(m *testing.M) {
	if socket := os.Getenv(peerSocket); socket != "" {
		connectAsPeer(socket)
		return
	}
	os.Exit(m.Run())
}

func connectAsPeer(socket string) {
	line := bufio.NewReader(os.Stdin)
	line.ReadString('\n') // the pid file is written first, as libvirt does
	c, err := net.Dial("unix", socket)
	if err != nil {
		fmt.Println("dial:", err)
		return
	}
	defer c.Close()
	b := make([]byte, 8)
	if _, err := io.ReadFull(c, b); err != nil {
		fmt.Println("refused")
	} else {
		fmt.Println(string(b))
	}
	line.ReadString('\n')
}

const greeting = "NBDMAGIC"

// peer is such a process, of another user.
type peer struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

func newPeer(t *testing.T, socket string, uid, gid uint32, args ...string) *peer {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: other users' processes need root")
	}
	p := &peer{t: t, cmd: exec.Command("/proc/self/exe", args...)}
	p.cmd.Env = append(os.Environ(), peerSocket+"="+socket)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: gid, NoSetGroups: uid == 0}, Pdeathsig: syscall.SIGKILL,
	}
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.end)
	return p
}

// connect has it connect and returns what it says.
func (p *peer) connect() string {
	p.t.Helper()
	if _, err := io.WriteString(p.stdin, "\n"); err != nil {
		p.t.Fatal(err)
	}
	said, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("the other process: %v", err)
	}
	return strings.TrimSpace(said)
}

func (p *peer) end() {
	p.stdin.Close()
	_ = p.cmd.Wait()
}

const (
	foreignUser  = 54321
	foreignGroup = 54322
)

// open makes the folder of a config one that others may enter.
func enterable(t *testing.T, c Config) {
	t.Helper()
	if err := os.Chmod(filepath.Dir(c.Socket), 0o711); err != nil {
		t.Fatal(err)
	}
}

func TestWhoMayConnect(t *testing.T) {
	c, _ := config(t)
	enterable(t, c)
	c.Group = strconv.Itoa(foreignGroup)
	id := uuid.New()
	file := filepath.Join(filepath.Dir(c.Socket), "guest.pid")
	mine := &api.Peer{Domain: "guest", UUID: id.String(), PIDFile: file}
	stop := start(t, c)
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	e := api.NewEngine(api.ControlPath(c.Socket))
	refused := uint64(0)
	qemu := []string{"-name", "guest=guest", "-uuid", strings.ToUpper(id.String()), "-m", "64"}
	for _, test := range []struct {
		name     string
		client   *api.Peer
		uid, gid uint32
		args     []string
		file     func(pid int) string // what the pid file holds; nil: there is none
		want     string
	}{
		{"anyone of the group", nil, foreignUser, foreignGroup, nil, nil, greeting},
		{"another group", nil, foreignUser, foreignUser, nil, nil, "dial: "},
		{"its QEMU", mine, foreignUser, foreignGroup, qemu, func(pid int) string { return fmt.Sprintln(pid) }, greeting},
		{"root", mine, 0, 0, nil, nil, greeting},
		{"no pid file", mine, foreignUser, foreignGroup, qemu, nil, "refused"},
		{"another guest's QEMU", mine, foreignUser, foreignGroup, qemu, func(pid int) string { return fmt.Sprint(pid + 1) }, "refused"},
		{"empty pid file", mine, foreignUser, foreignGroup, qemu, func(int) string { return "" }, "refused"},
		{"garbage in the pid file", mine, foreignUser, foreignGroup, qemu, func(pid int) string { return fmt.Sprint(pid, "x") }, "refused"},
		{"0 in the pid file", mine, foreignUser, foreignGroup, qemu, func(int) string { return "0" }, "refused"},
		{
			"stale pid file", mine, foreignUser, foreignGroup, []string{"-uuid", uuid.NewString()},
			func(pid int) string { return fmt.Sprint(pid) }, "refused",
		},
		{"no QEMU", mine, foreignUser, foreignGroup, []string{"-uuid"}, func(pid int) string { return fmt.Sprint(pid) }, "refused"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := e.Client(t.Context(), api.ClientRequest{Client: test.client})
			if err != nil {
				t.Fatal(err)
			}
			if (s.Client == nil) != (test.client == nil) || s.Client != nil && *s.Client != *test.client {
				t.Errorf("the status says %+v", s.Client)
			}
			p := newPeer(t, c.Socket, test.uid, test.gid, test.args...)
			_ = os.Remove(file)
			if test.file != nil {
				if err := os.WriteFile(file, []byte(test.file(p.cmd.Process.Pid)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if said := p.connect(); !strings.HasPrefix(said, test.want) {
				t.Errorf("%q, want %q", said, test.want)
			}
			if test.want == "refused" {
				refused++
			}
			if s, err = e.Status(t.Context()); err != nil || s.IO.Refused != refused {
				t.Errorf("%d refused, want %d (%v)", s.IO.Refused, refused, err)
			}
		})
	}
	// Whoever is connected stays.
	if _, err := e.Client(t.Context(), api.ClientRequest{}); err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, c.Socket, foreignUser, foreignGroup)
	if said := p.connect(); said != greeting {
		t.Fatal(said)
	}
	s, err := e.Client(t.Context(), api.ClientRequest{Client: mine})
	if err != nil || s.Connections == 0 {
		t.Errorf("a change of the client cut off an open connection: %+v, %v", s, err)
	}
}

// The log names who was refused and why.
func TestRefusalNamesAll(t *testing.T) {
	c, _ := config(t)
	enterable(t, c)
	client := &api.Peer{Domain: "guest", UUID: uuid.NewString(), PIDFile: filepath.Join(t.TempDir(), "none.pid")}
	g := new(gatekeeper)
	g.client.Store(client)
	l, err := listen(c.Socket, nbdMode, foreignGroup)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answers := make(chan error, 1)
	go func() {
		nc, err := l.Accept()
		if err == nil {
			err = g.accept(nc.(*net.UnixConn))
			nc.Close()
		}
		answers <- err
	}()
	p := newPeer(t, c.Socket, foreignUser, foreignGroup)
	if said := p.connect(); said != "refused" {
		t.Fatal(said)
	}
	err = <-answers
	for _, want := range []string{"pid " + strconv.Itoa(p.cmd.Process.Pid), "uid " + strconv.Itoa(foreignUser), `"guest"`, client.PIDFile} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: does not say %s", err, want)
		}
	}
	if !errors.Is(err, errForeign) || g.refused.Load() != 1 {
		t.Errorf("%v, %d refused", err, g.refused.Load())
	}
}

// A process that connected and ended: its number may be another's by now.
func TestPeerThatEnded(t *testing.T) {
	c, _ := config(t)
	enterable(t, c)
	l, err := listen(c.Socket, nbdMode, foreignGroup)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	id := uuid.NewString()
	p := newPeer(t, c.Socket, foreignUser, foreignGroup, "-uuid", id)
	file := filepath.Join(t.TempDir(), "pid")
	if err := os.WriteFile(file, []byte(strconv.Itoa(p.cmd.Process.Pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(p.stdin, "\n"); err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	client := &api.Peer{Domain: "guest", UUID: id, PIDFile: file}
	if err := admit(nc.(*net.UnixConn), client); err != nil {
		t.Fatalf("while it lives: %v", err)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait()
	if err := admit(nc.(*net.UnixConn), client); !errors.Is(err, errForeign) {
		t.Errorf("after its end: %v", err)
	}
}

func TestClientThatNoProcessCouldBe(t *testing.T) {
	c, _ := config(t)
	good := api.Peer{Domain: "g", UUID: uuid.NewString(), PIDFile: "/run/libvirt/qemu/g.pid"}
	if err := checkPeer(&good); err != nil {
		t.Error(err)
	}
	for _, change := range []func(p *api.Peer){
		func(p *api.Peer) { p.Domain = "" },
		func(p *api.Peer) { p.UUID = "" },
		func(p *api.Peer) { p.UUID = uuid.Nil.String() },
		func(p *api.Peer) { p.PIDFile = "g.pid" },
	} {
		p := good
		change(&p)
		bad := c
		bad.Client = &p
		if err := Run(t.Context(), bad, zerolog.Nop(), nil); err == nil || !strings.HasPrefix(err.Error(), "client: ") {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

func TestGroupID(t *testing.T) {
	for group, want := range map[string]int{"": -1, "root": 0, "0": 0, "54321": 54321} {
		if got, err := groupID(group); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", group, got, err, want)
		}
	}
	for _, group := range []string{"no such group", "-1", "4294967296", "1x"} {
		c, _ := config(t)
		c.Group = group
		if err := Run(t.Context(), c, zerolog.Nop(), nil); err == nil || !strings.Contains(err.Error(), strconv.Quote(group)) {
			t.Errorf("%q: %v", group, err)
		}
	}
}
