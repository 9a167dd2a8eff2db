package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// cutDeadline bounds how long a volume stays suspended for a cut.
const cutDeadline = 30 * time.Second

// originPeer is a raw disk on a LUN, served, which can have a snapshot that keeps what is overwritten on another LUN.
type originPeer interface {
	at() *server
	// snapshot begins one at this moment.
	snapshot(ctx context.Context) error
	// drop ends it.
	drop(ctx context.Context) error
	// io is what all its LUNs have done.
	io() (deviceIO, error)
	close() error
}

// originDisks are the two LUNs of a peer.
type originDisks struct {
	*server
	disk, kept *lun
}

// newOriginDisks makes the LUNs in folder, a disk of size bytes, and writes all of them: a LUN has its room.
func newOriginDisks(ctx context.Context, folder, name string, size, kept int64) (d *originDisks, err error) {
	d = &originDisks{}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.disk, err = newLUN(folder, name+"-disk", size); err != nil {
		return d, err
	}
	if d.kept, err = newLUN(folder, name+"-kept", kept); err != nil {
		return d, err
	}
	return d, errors.Join(fill(ctx, d.disk.Name(), size), fill(ctx, d.kept.Name(), kept))
}

func (d *originDisks) at() *server { return d.server }

func (d *originDisks) io() (deviceIO, error) {
	a, err := d.disk.io()
	if err != nil {
		return a, err
	}
	b, err := d.kept.io()
	return a.plus(b), err
}

func (d *originDisks) close() error {
	var err error
	if d.server != nil {
		err = d.stop()
	}
	for _, l := range []*lun{d.disk, d.kept} {
		if l != nil {
			err = errors.Join(err, l.close())
		}
	}
	return err
}

// ourOrigin is a raw disk with its state store and engine.
type ourOrigin struct {
	*originDisks
	b      *bench
	state  string
	engine *api.Engine
	id     string // of the snapshot, or the last
}

func newOurOrigin(ctx context.Context, b *bench, folder string, size int64) (o *ourOrigin, err error) {
	dir, err := b.newDir()
	if err != nil {
		return nil, err
	}
	o = &ourOrigin{b: b, state: storePath(dir)}
	if o.originDisks, err = newOriginDisks(ctx, folder, "ours-"+filepath.Base(dir), size, size+size/4096+64<<20); err != nil {
		return o, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.close())
		}
	}()
	if err := command(ctx, []string{b.o.Bin, "store", "create", "--raw", o.disk.Name(), "--force-raw", o.state}, b.env()...); err != nil {
		return o, err
	}
	socket := filepath.Join(dir, "n.sock")
	if o.server, err = startServer(ctx, []string{b.o.Bin, "serve", "--socket", socket, o.state}, b.env(), socket); err != nil {
		return o, err
	}
	o.engine = api.NewEngine(api.ControlPath(socket))
	return o, nil
}

func (o *ourOrigin) snapshot(ctx context.Context) (err error) {
	cut := uuid.NewString()
	if o.id, err = o.b.addSnapshot(ctx, o.engine, o.state, o.kept.Name(), cut); err != nil {
		return err
	}
	return cutOne(ctx, o.engine, cut)
}

// addSnapshot makes a snapshot store of a volume, over what is at path, and has its engine open it for a cut. It returns its UUID.
func (b *bench) addSnapshot(ctx context.Context, engine *api.Engine, volume, path, cut string) (string, error) {
	argv := []string{b.o.Bin, "store", "create", "--force", "--snapshot-of", volume, "--cut", cut}
	if b.o.OurChunk > 0 {
		argv = append(argv, "--chunk", b.o.OurChunk.String())
	}
	if err := command(ctx, append(argv, path), b.env()...); err != nil {
		return "", err
	}
	h, err := header(ctx, path)
	if err != nil {
		return "", err
	}
	id := h.UUID.String()
	_, err = engine.AddSnapshot(ctx, api.SnapshotAddRequest{UUID: id, Store: path, Cut: cut})
	return id, err
}

// cutOne makes a cut of one volume.
func cutOne(ctx context.Context, engine *api.Engine, cut string) error {
	if _, err := engine.Cut(ctx, api.CutRequest{Cut: cut, DeadlineMillis: cutDeadline.Milliseconds()}); err != nil {
		return err
	}
	_, err := engine.EndCut(ctx, api.CutEndRequest{Cut: cut, Keep: true})
	return err
}

func (o *ourOrigin) drop(ctx context.Context) error {
	st, err := o.engine.Status(ctx)
	if err != nil {
		return err
	}
	for _, s := range st.Stack {
		if s.UUID == o.id && s.State != api.SnapshotActive {
			err = fmt.Errorf("the snapshot is %s: %s", s.State, s.Error)
		}
	}
	_, rerr := o.engine.RemoveSnapshot(ctx, api.SnapshotRequest{UUID: o.id})
	return errors.Join(err, rerr)
}

// header reads that of the store at path.
func header(ctx context.Context, path string) (*cowfmt.Header, error) {
	dev, err := blockdev.OpenFile(ctx, path, blockdev.FileOptions{ReadOnly: true, Direct: true})
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	choice, err := store.Peek(dev)
	if err != nil {
		return nil, err
	}
	return choice.Header, nil
}

// qemuOrigin is a raw disk in a qemu-storage-daemon, whose backup job copies before guests write, to a raw disk.
type qemuOrigin struct {
	*originDisks
	*qmp
}

func newQEMUOrigin(ctx context.Context, b *bench, folder string, size int64) (q *qemuOrigin, err error) {
	dir, err := b.newDir()
	if err != nil {
		return nil, err
	}
	q = &qemuOrigin{}
	if q.originDisks, err = newOriginDisks(ctx, folder, "qemu-"+filepath.Base(dir), size, size); err != nil {
		return q, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, q.close())
		}
	}()
	socket, monitor := filepath.Join(dir, "n.sock"), filepath.Join(dir, "q.sock")
	argv := []string{"qemu-storage-daemon"}
	for node, l := range map[string]*lun{"disk": q.disk, "kept": q.kept} {
		argv = append(argv, "--blockdev", "driver=host_device,cache.direct=on,aio=io_uring,node-name="+node+",filename="+l.Name())
	}
	argv = append(argv, "--nbd-server", "addr.type=unix,addr.path="+socket, "--export", "type=nbd,id=e,node-name=disk,name=,writable=on",
		"--chardev", "socket,id=c,server=on,wait=off,path="+monitor, "--monitor", "chardev=c")
	if q.server, err = startServer(ctx, argv, nil, socket); err != nil {
		return q, err
	}
	for until := time.Now().Add(startTimeout); ; time.Sleep(10 * time.Millisecond) {
		if q.qmp, err = dialQMP(monitor); err == nil || time.Now().After(until) {
			return q, err
		}
	}
}

// snapshot begins a job that copies nothing by itself, as for a reader that fetches the rest.
func (q *qemuOrigin) snapshot(context.Context) error {
	return q.run("blockdev-backup", map[string]any{"job-id": "backup", "device": "disk", "target": "kept", "sync": "none"})
}

func (q *qemuOrigin) drop(context.Context) error {
	if err := q.run("block-job-cancel", map[string]any{"device": "backup", "force": true}); err != nil {
		return err
	}
	return q.jobless()
}

func (q *qemuOrigin) close() error {
	if q.qmp != nil {
		if err := q.qmp.close(); err != nil {
			return errors.Join(err, q.originDisks.close())
		}
	}
	return q.originDisks.close()
}
