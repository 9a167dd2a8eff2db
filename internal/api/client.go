package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
)

// ErrNotRunning says that nothing answers on a control socket.
var ErrNotRunning = errors.New("not running")

// RemoteError is what the other side refused a request with.
type RemoteError struct {
	Code    int // HTTP status
	Message string
	Reason  string // Error.Code, "" for most
	Older   bool   // it does not know the path at all: it is of an older version than this program
}

func (e *RemoteError) Error() string { return e.Message }

// maxAnswer bounds an answer in bytes.
const maxAnswer = 64 << 20

// client calls one control socket.
type client struct {
	socket string
	http   http.Client
}

func newClient(socket string) *client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	// A connection a call: the other side may be replaced between two.
	return &client{socket: socket, http: http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// call sends a request, nil for GET, and decodes the answer into out, if not nil.
func (c *client) call(ctx context.Context, path string, in, out any) error {
	method, body := http.MethodGet, io.Reader(nil)
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		method, body = http.MethodPost, bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://virt-cow"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("%w: nothing answers at %s", ErrNotRunning, c.socket)
		}
		return fmt.Errorf("%s: %w", c.socket, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s: %w", c.socket, err)
	}
	if resp.StatusCode/100 != 2 {
		var e Error
		older := false
		if json.Unmarshal(b, &e) != nil || e.Message == "" {
			e.Message = fmt.Sprintf("%s: %s: %s", c.socket, resp.Status, bytes.TrimSpace(b))
			older = resp.StatusCode == http.StatusNotFound // of a path that is known, it would say what is not found
		}
		return &RemoteError{Code: resp.StatusCode, Message: e.Message, Reason: e.Code, Older: older}
	}
	if out == nil || len(b) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s: answer: %w", c.socket, err)
	}
	return nil
}

// Engine calls an engine process.
type Engine struct{ c *client }

// NewEngine makes a client for the engine behind a control socket.
func NewEngine(socket string) *Engine { return &Engine{newClient(socket)} }

// Status asks what the engine serves and how it is.
func (e *Engine) Status(ctx context.Context) (*EngineStatus, error) {
	return e.status(ctx, PathEngineStatus, nil)
}

// Hydration starts or pauses the background copy, or changes its rate.
func (e *Engine) Hydration(ctx context.Context, r HydrationRequest) (*EngineStatus, error) {
	return e.status(ctx, PathEngineHydration, r)
}

// Suspend holds the volume's I/O until Resume or the deadline.
func (e *Engine) Suspend(ctx context.Context, r SuspendRequest) (*EngineStatus, error) {
	return e.status(ctx, PathEngineSuspend, r)
}

// Resume ends a Suspend.
func (e *Engine) Resume(ctx context.Context) (*EngineStatus, error) {
	return e.status(ctx, PathEngineResume, struct{}{})
}

// Client changes whose QEMU may connect. The engine must be of ControlVersion 2.
func (e *Engine) Client(ctx context.Context, r ClientRequest) (*EngineStatus, error) {
	return e.status(ctx, PathEngineClient, r)
}

// Cache switches the exception cache.
func (e *Engine) Cache(ctx context.Context, r CacheRequest) (*EngineStatus, error) {
	return e.status(ctx, PathEngineCache, r)
}

// Grant has the volume granted to another host. As the three below it asks for ControlVersion 3.
func (e *Engine) Grant(ctx context.Context, r GrantRequest) (*EngineStatus, error) {
	return e.status(ctx, PathEngineGrant, r)
}

// EndGrant ends a grant.
func (e *Engine) EndGrant(ctx context.Context, r GrantEndRequest) (*EngineStatus, error) {
	return e.status(ctx, PathEngineGrantEnd, r)
}

// Guest tells what the domain is doing.
func (e *Engine) Guest(ctx context.Context, r GuestRequest) (*EngineStatus, error) {
	return e.status(ctx, PathEngineGuest, r)
}

// Dead gives a proof of death.
func (e *Engine) Dead(ctx context.Context, r DeadOwner) (*EngineStatus, error) {
	return e.status(ctx, PathEngineDead, r)
}

// AddSnapshot has a snapshot store opened for a cut to come. As the four below it asks for ControlVersion 4.
func (e *Engine) AddSnapshot(ctx context.Context, r SnapshotAddRequest) (*EngineStatus, error) {
	return e.status(ctx, PathEngineSnapshotAdd, r)
}

// RemoveSnapshot takes a snapshot out of the stack.
func (e *Engine) RemoveSnapshot(ctx context.Context, r SnapshotRequest) (*EngineStatus, error) {
	return e.status(ctx, PathEngineSnapshotRemove, r)
}

// SnapshotCursor says how much of a snapshot is kept elsewhere.
func (e *Engine) SnapshotCursor(ctx context.Context, r SnapshotCursorRequest) (*EngineStatus, error) {
	return e.status(ctx, PathEngineSnapshotCursor, r)
}

// Cut suspends the volume for a cut until EndCut or the deadline.
func (e *Engine) Cut(ctx context.Context, r CutRequest) (*EngineStatus, error) {
	return e.status(ctx, PathEngineCut, r)
}

// EndCut ends the suspension of a cut.
func (e *Engine) EndCut(ctx context.Context, r CutEndRequest) (*EngineStatus, error) {
	return e.status(ctx, PathEngineCutEnd, r)
}

// Stop asks the engine to flush, close its store and end.
func (e *Engine) Stop(ctx context.Context) error {
	return e.c.call(ctx, PathEngineStop, struct{}{}, nil)
}

func (e *Engine) status(ctx context.Context, path string, in any) (*EngineStatus, error) {
	var s EngineStatus
	if err := e.c.call(ctx, path, in, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// Daemon calls the daemon.
type Daemon struct{ c *client }

// NewDaemon makes a client for the daemon with this run folder.
func NewDaemon(runDir string) *Daemon { return &Daemon{newClient(filepath.Join(runDir, DaemonSocket))} }

// Status asks for all volumes.
func (d *Daemon) Status(ctx context.Context) (*DaemonStatus, error) {
	var s DaemonStatus
	if err := d.call(ctx, PathDaemonStatus, nil, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// Attach gives a domain a disk and waits until the guest has it, if the domain runs.
func (d *Daemon) Attach(ctx context.Context, r AttachRequest) (*VolumeStatus, error) {
	return d.volume(ctx, PathDaemonAttach, r)
}

// Detach takes a volume from its domain and waits until the guest let go of it.
func (d *Daemon) Detach(ctx context.Context, r DetachRequest) (*VolumeStatus, error) {
	return d.volume(ctx, PathDaemonDetach, r)
}

// Hydration changes the hydration of a volume.
func (d *Daemon) Hydration(ctx context.Context, r VolumeHydrationRequest) (*VolumeStatus, error) {
	return d.volume(ctx, PathDaemonHydration, r)
}

func (d *Daemon) volume(ctx context.Context, path string, in any) (*VolumeStatus, error) {
	var s VolumeStatus
	if err := d.call(ctx, path, in, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

func (d *Daemon) call(ctx context.Context, path string, in, out any) error {
	err := d.c.call(ctx, path, in, out)
	var remote *RemoteError
	if errors.As(err, &remote) && remote.Older {
		remote.Message = fmt.Sprintf("the virt-cow daemon is older than this program and does not know %s: restart it with "+
			"`systemctl restart virt-cow`, which no guest notices", path)
	}
	if errors.Is(err, ErrNotRunning) {
		return fmt.Errorf("the virt-cow daemon is %w: start it with `systemctl start virt-cow`, or `virt-cow daemon` in a shell", err)
	}
	return err
}
