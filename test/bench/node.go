package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cut"
	hosts "github.com/virt-cow/virt-cow/internal/peer"
	"github.com/virt-cow/virt-cow/test/lab/pki"
)

// nodeName is what image node and owner are called: both are on this machine.
const nodeName = "localhost"

// owner is this program as the host of the volumes that an image node copies: it answers for their engines as a daemon does.
type owner struct {
	files   hosts.Files // of the certificate that it shares with the nodes
	client  hosts.Client
	address string
	engines map[string]*api.Engine // by the volume's UUID
	stop    context.CancelFunc
	stopped chan error
}

// newOwner serves engines, which may be added until they are asked for.
func (b *bench) newOwner() (*owner, error) {
	dir, err := b.newDir()
	if err != nil {
		return nil, err
	}
	ca, err := pki.New("bench")
	if err != nil {
		return nil, err
	}
	pair, err := ca.Server(nodeName)
	if err != nil {
		return nil, err
	}
	if err := pair.WriteServer(dir, ca); err != nil {
		return nil, err
	}
	o := &owner{engines: map[string]*api.Engine{}, stopped: make(chan error, 1)}
	o.files = hosts.Files{CA: filepath.Join(dir, pki.CACert), Cert: filepath.Join(dir, pki.ServerCert), Key: filepath.Join(dir, pki.ServerKey)}
	o.client.Identity = hosts.NewIdentity(o.files, zerolog.Nop())
	known, err := hosts.ParseHosts([]string{nodeName})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	o.address = fmt.Sprintf("%s:%d", nodeName, l.Addr().(*net.TCPAddr).Port)
	server := hosts.Server{Identity: o.client.Identity, Hosts: known, Handler: o.handler(), Log: zerolog.Nop()}
	ctx, stop := context.WithCancel(context.Background())
	o.stop = stop
	go func() { o.stopped <- server.Serve(ctx, l) }()
	return o, nil
}

func (o *owner) handler() http.Handler {
	answer := func(do func(ctx context.Context, e *api.Engine, s api.PeerSnapshot) (any, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			var s api.PeerSnapshot
			err := json.NewDecoder(r.Body).Decode(&s)
			var out any
			if err == nil && o.engines[s.Volume] == nil {
				err = fmt.Errorf("no volume %s", s.Volume)
			}
			if err == nil {
				out, err = do(r.Context(), o.engines[s.Volume], s)
			}
			if err != nil {
				w.WriteHeader(http.StatusInternalServerError)
				out = api.Error{Message: err.Error()}
			}
			_ = json.NewEncoder(w).Encode(out)
		}
	}
	mux := http.NewServeMux()
	mux.Handle("POST "+api.PathPeerAttest, answer(attest))
	mux.Handle("POST "+api.PathPeerCursor, answer(func(ctx context.Context, e *api.Engine, s api.PeerSnapshot) (any, error) {
		_, err := e.SnapshotCursor(ctx, api.SnapshotCursorRequest{UUID: s.Snapshot, Cursor: s.Cursor})
		return struct{}{}, err
	}))
	mux.Handle("POST "+api.PathPeerSnapshotRemove, answer(func(ctx context.Context, e *api.Engine, s api.PeerSnapshot) (any, error) {
		_, err := e.RemoveSnapshot(ctx, api.SnapshotRequest{UUID: s.Snapshot})
		return struct{}{}, err
	}))
	return mux
}

func attest(ctx context.Context, e *api.Engine, s api.PeerSnapshot) (any, error) {
	st, err := e.Status(ctx)
	if err != nil {
		return nil, err
	}
	a := api.PeerAttestAnswer{Epoch: st.Epoch, Open: true, Why: "it is not in the stack"}
	if now := cut.Entry(st, s.Snapshot); now != nil {
		a.Unbroken, a.Why = now.State == api.SnapshotActive, now.Error
	}
	return a, nil
}

func (o *owner) close() error {
	o.stop()
	return <-o.stopped
}

// imageNode is a `virt-cow image-node` with an archive of its own.
type imageNode struct {
	*server
	dir, run string
	owner    *owner
	address  string
}

// startNode starts an image node for an owner's volumes; it reads what is in the work folder.
func (b *bench) startNode(ctx context.Context, o *owner) (n *imageNode, err error) {
	n = &imageNode{owner: o}
	if n.dir, err = b.newDir(); err != nil {
		return nil, err
	}
	n.run = filepath.Join(b.shm, "node-"+filepath.Base(n.dir))
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if n.address, err = freeAddress(); err != nil {
		return n, err
	}
	pass := filepath.Join(n.dir, "passphrase")
	config := filepath.Join(n.dir, "config.toml")
	text := fmt.Sprintf("run_dir = %q\nstate_dir = %q\n[migration]\nca = %q\ncert = %q\nkey = %q\n[image_node]\nlisten = %q\nhosts = [%q]\nfolders = [%q]\n"+
		"[archive]\nuri = %q\npassphrase_file = %q\ncache = %q\n", n.run, filepath.Join(n.dir, "state"), o.files.CA, o.files.Cert, o.files.Key,
		strings.Replace(n.address, nodeName, "127.0.0.1", 1), nodeName, b.dir, filepath.Join(n.dir, "archive"), pass, filepath.Join(n.dir, "cache"))
	if err := errors.Join(os.WriteFile(pass, []byte("a passphrase for a benchmark\n"), 0o600), os.WriteFile(config, []byte(text), 0o600)); err != nil {
		return n, err
	}
	if err := command(ctx, []string{b.o.Bin, "--config", config, "archive", "create"}); err != nil {
		return n, err
	}
	n.server, err = startServer(ctx, []string{b.o.Bin, "--config", config, "image-node"}, nil, filepath.Join(n.run, api.NodeSocket))
	return n, err
}

// freeAddress is one that nobody listens at.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return fmt.Sprintf("%s:%d", nodeName, l.Addr().(*net.TCPAddr).Port), nil
}

// reserve begins a job; its UUID is that of the cut.
func (n *imageNode) reserve(ctx context.Context, domain string) (string, error) {
	var s api.JobStatus
	err := n.owner.client.Call(ctx, n.address, api.PathNodeReserve, api.ReserveRequest{Domain: "bench", UUID: domain, Host: nodeName, Address: n.owner.address}, &s)
	return s.Job, err
}

// copy hands a cut over and waits for the job's end.
func (n *imageNode) copy(ctx context.Context, m api.Manifest) (api.JobStatus, error) {
	var s api.JobStatus
	if err := n.owner.client.Call(ctx, n.address, api.PathNodeStart, api.StartRequest{Job: m.Cut, Manifest: m}, &s); err != nil {
		return s, err
	}
	for {
		now, err := api.NewNode(n.run).BackupJob(ctx, api.JobRequest{Job: m.Cut, Changed: s.Changed})
		switch {
		case err != nil:
			return s, err
		case now.State == api.JobDone:
			return *now, nil
		case now.State == api.JobFailed || now.State == api.JobCancelled:
			return *now, fmt.Errorf("job %s: %s", now.State, now.Error)
		case now.Waits != "": // all that it needs is there
			return *now, fmt.Errorf("the job waits: %s: %s", now.Waits, &n.said)
		}
		s = *now
		select {
		case <-ctx.Done():
			return s, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

func (n *imageNode) close() error {
	var err error
	if n.server != nil {
		err = n.server.stop()
	}
	return errors.Join(err, os.RemoveAll(n.dir), os.RemoveAll(n.run))
}

// used is what a command and its children have used of the CPU.
func used(cmd *exec.Cmd) time.Duration {
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}
