//go:build !virtcow_lean

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/peer"
	"github.com/virt-cow/virt-cow/test/lab/pki"
)

// imageNode is a running image node with an archive, disks in its folder, and a host that may ask it.
type imageNode struct {
	b      *bench
	config string
	cmd    *exec.Cmd
	log    *logBuffer
	listen string
	host   *peer.Client
}

// imageNode starts one whose configuration has more lines.
func (b *bench) imageNode(node, more string) *imageNode {
	b.t.Helper()
	n := &imageNode{b: b, config: b.path("config.toml"), log: new(logBuffer), listen: freePort(b.t)}
	ca, err := pki.New("CA")
	if err != nil {
		b.t.Fatal(err)
	}
	pair, err := ca.Server("localhost")
	if err != nil {
		b.t.Fatal(err)
	}
	files := peer.Files{CA: b.file("ca.pem", string(ca.PEM)), Cert: b.file("cert.pem", string(pair.Cert)), Key: b.file("key.pem", string(pair.Key))}
	n.host = &peer.Client{Identity: peer.NewIdentity(files, zerolog.Nop())}
	b.file("passphrase", "correct horse\n")
	if err := os.Mkdir(b.path("disks"), 0o700); err != nil {
		b.t.Fatal(err)
	}
	b.file("config.toml", fmt.Sprintf(`run_dir = %q
state_dir = %q
[migration]
ca = %q
cert = %q
key = %q
[archive]
uri = %q
passphrase_file = %q
cache = %q
[image_node]
listen = %q
hosts = ["localhost"]
folders = [%q]
devices = []
%s
%s`, b.path("run"), b.path("state"), files.CA, files.Cert, files.Key, b.path("archive"), b.path("passphrase"), b.path("cache"), n.listen, b.path("disks"), node, more))
	n.run("archive", "create").exits(0)
	n.start()
	return n
}

// freePort is one that is free, and that the kernel gives nobody who asks it for any.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		if l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 10000+rand.IntN(20000))); err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

func (n *imageNode) run(args ...string) outcome {
	n.b.t.Helper()
	return n.b.run(append([]string{"--config", n.config}, args...)...)
}

func (n *imageNode) start() {
	n.b.t.Helper()
	n.cmd = n.b.command(context.Background(), program, "--config", n.config, "image-node")
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := n.cmd.Start(); err != nil {
		n.b.t.Fatal(err)
	}
	n.b.t.Cleanup(n.kill)
	eventually(n.b.t, "the image node answers", func() bool {
		return n.run("backup", "jobs").code == 0
	})
}

func (n *imageNode) kill() {
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait()
}

// stop ends it as systemd does.
func (n *imageNode) stop() {
	n.b.t.Helper()
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		n.b.t.Fatal(err)
	}
	if err := n.cmd.Wait(); err != nil {
		n.b.t.Errorf("the image node: %v\n%s", err, n.log)
	}
}

// ask asks it as a host's daemon does.
func (n *imageNode) ask(path string, in, out any) {
	n.b.t.Helper()
	if err := n.host.Call(n.b.t.Context(), strings.Replace(n.listen, "127.0.0.1", "localhost", 1), path, in, out); err != nil {
		n.b.t.Fatal(err)
	}
}

// reserve reserves a job of the domain web.
func (n *imageNode) reserve() string {
	n.b.t.Helper()
	var s api.JobStatus
	n.ask(api.PathNodeReserve, api.ReserveRequest{Domain: "web", UUID: "5b0f2b5e-0001-4d5c-9d0a-000000000001", Host: "hv1", Address: "localhost:1"}, &s)
	return s.Job
}

// disk makes a raw disk with a snapshot that nobody has open, a third of it a hole, and says where it is.
func (n *imageNode) disk(job string, size int) (content []byte, m api.Manifest) {
	n.b.t.Helper()
	b := n.b
	content = b.image("disks/disk", size)
	b.run("store", "create", "--raw", b.path("disks/disk"), b.path("disks/web.state")).exits(0)
	b.run("store", "create", "--snapshot-of", b.path("disks/web.state"), "--cut", job, b.path("disks/web.snap")).exits(0)
	b.stack("disks/web.state", "disks/web.snap", cowfmt.StackActive)
	b.header("disks/web.state", func(h *cowfmt.Header) { h.Stack[0].Cursor = 0 })
	v, s := b.info("disks/web.state"), b.info("disks/web.snap")
	return content, api.Manifest{
		Version: 1, Domain: "web", UUID: "5b0f2b5e-0001-4d5c-9d0a-000000000001", Host: "hv1", Cut: job, CutAt: time.Now().UnixMilli(), HeldMicros: 12300,
		Grade: api.GradeCrash, GradeWhy: "no agent", XML: "<domain/>", InactiveXML: "<domain/>",
		Disks: []api.ManifestDisk{{
			Target: "vda", Volume: v.Name, UUID: v.UUID, Size: int64(size), ChunkSize: s.ChunkSize, Snapshot: s.UUID,
			Store: api.Place{Address: b.path("disks/web.state"), UUID: v.UUID}, Saves: api.Place{Address: b.path("disks/web.snap"), UUID: s.UUID},
			Origin: &api.Place{Address: b.path("disks/disk"), Size: int64(size)},
		}},
	}
}

// A job as a user sees it: on a terminal, in a log file, and as JSON.
func TestBackupWatch(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	metrics := freePort(t)
	n := b.imageNode("rate = \"8M\"\nmetrics = \""+metrics+"\"", "")
	n.run("backup", "watch", uuid.NewString()).exits(exitFailed).says("no such job")
	job := n.reserve()
	watch := func(args ...string) *exec.Cmd {
		return b.command(context.Background(), program, append(append([]string{"--config", n.config}, args...), "backup", "watch", job)...)
	}
	term := b.onTerminal(80, 24, watch())
	at := term.shows(0, "backup of web: the cut is being made\r\n")
	var plain, events bytes.Buffer
	log, lines := watch(), watch("--json")
	log.Stderr, log.Stdout, lines.Stdout = &plain, &plain, &events
	for _, c := range []*exec.Cmd{log, lines} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	content, m := n.disk(job, 96*mib)
	n.ask(api.PathNodeStart, api.StartRequest{Job: job, Manifest: m}, nil)
	at = term.shows(at, "cut made: guest held for 12.3ms, grade crash: no agent\r\n")
	at = term.shows(at, "vda: 96 MiB, volume "+m.Disks[0].Volume+"\r\n")
	at = term.shows(at, "% (")
	for _, text := range []string{"backup ", "  disks     1 disk, 96 MiB: ", "sparse (33.3%)", "written to the archive\r\n", "  guest     held for 12.3ms; grade crash: no agent\r\n"} {
		at = term.shows(at, text)
	}
	if err := term.cmd.Wait(); err != nil {
		t.Error(err)
	}
	// No line of the bar is longer than the terminal, and each is taken away before the next.
	bars := regexp.MustCompile(`\r\x1b\[K( *[0-9.]+% [^\r\n]*)`).FindAllStringSubmatch(term.output(), -1)
	for _, bar := range bars {
		if len(bar[1]) > 79 {
			t.Errorf("too long: %q", bar[1])
		}
	}
	if len(bars) < 2 {
		t.Errorf("%q", term.output())
	}

	if err := log.Wait(); err != nil {
		t.Error(err)
	}
	text := plain.String()
	t.Logf("a log file:\n%s\na terminal:\n%q", text, term.output())
	if strings.ContainsAny(text, "\r\x1b") || !regexp.MustCompile(`(?m)^ *[0-9.]+% \(.* of 96 MiB\) in [0-9]+s, ETA .*, read .*/s, write .*/s, sparse .*%, reused .*%$`).MatchString(text) {
		t.Errorf("a log file: %q", text)
	}
	if err := lines.Wait(); err != nil {
		t.Error(err)
	}
	var states []string
	rates := false
	for d := json.NewDecoder(&events); d.More(); {
		var e struct {
			api.JobStatus
			Progress *jobProgress
		}
		if err := d.Decode(&e); err != nil {
			t.Fatal(err)
		}
		if len(states) == 0 || states[len(states)-1] != e.State {
			states = append(states, e.State)
		}
		rates = rates || e.Progress != nil && e.Progress.ReadRate > 0 && e.Progress.WriteRate > 0 && e.Progress.ETA != nil && e.Progress.Sparse > 0
	}
	if all := strings.Join(states, " "); !rates || !strings.Contains(all, "copying") || !strings.HasSuffix(all, " done") {
		t.Errorf("events: %s, rates %v", all, rates)
	}
	var list api.JobList
	n.run("--json", "backup", "jobs").exits(0).json(&list)
	n.run("restore", "disk", list.Jobs[0].Backup, "vda", b.path("restored")).exits(0)
	if !bytes.Equal(b.read("restored"), content) {
		t.Error("the disk is not as it was")
	}
	resp, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	exposed, err := io.ReadAll(resp.Body)
	for _, line := range []string{`virt_cow_node_backup_bytes{domain="web",kind="size"} 1.00663296e+08`, `virt_cow_node_backup_hold_seconds{domain="web"} 0.0123`,
		`virt_cow_node_jobs{state="done"} 1`, "virt_cow_node_archive_up 1"} {
		if err != nil || !strings.Contains(string(exposed), line) {
			t.Errorf("no %s: %v\n%s", line, err, exposed)
		}
	}
	n.run("archive", "maintain").exits(0)
	n.run("archive", "maintain").exits(0).says("nothing is due")
	n.run("archive", "maintain", "--full").exits(0).says("maintained, full, in ")
	n.stop()
}
