package backup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/nbd"
	"github.com/virt-cow/virt-cow/internal/peer"
	"github.com/virt-cow/virt-cow/internal/reader"
)

// Bounds of what a host is asked for: it starts a process and opens disks; and a read.
const (
	pullOpening = 2 * time.Minute
	pullReading = time.Minute
)

// openDisk opens a disk here, or, where it is not seen, through a host that sees it.
func (n *Node) openDisk(ctx context.Context, j *job, d *api.ManifestDisk) (Source, error) {
	s, err := n.config.Sources.Open(ctx, d)
	if !errors.Is(err, ErrNotSeen) || n.config.Identity == nil {
		return s, err
	}
	tried := err
	for _, address := range j.hosts(d) {
		p, err := n.pull(ctx, j, d, address)
		if err == nil {
			p.why = fmt.Sprintf("%v; host %s reads it", tried, address)
			j.log.Info().Str("disk", d.Target).Str("address", address).AnErr("why", tried).Msg("disk is pulled from a host")
			return p, nil
		}
		err = fmt.Errorf("nor is it to be had from host %s: %w", address, err)
		if errors.Is(err, ErrGivenUp) {
			return nil, err
		}
		tried = errors.Join(tried, err)
	}
	return nil, tried
}

// hosts are those that may see a disk: the last that was known to own the volume, then that which made the cut.
func (j *job) hosts(d *api.ManifestDisk) []string {
	j.node.mu.Lock()
	defer j.node.mu.Unlock()
	list := []string{j.rec.Progress.Owners[d.Snapshot], j.rec.Reserve.Address}
	return slices.Compact(slices.DeleteFunc(list, func(a string) bool { return a == "" }))
}

// owner notes who owns the volume of a disk that is not seen; with the next checkpoint the next process knows it, too.
func (j *job) owner(d *api.ManifestDisk, s Standing) {
	if !s.Owned || s.Address == "" {
		return
	}
	j.node.mu.Lock()
	defer j.node.mu.Unlock()
	if j.rec.Progress.Owners[d.Snapshot] != s.Address {
		owners := map[string]string{}
		maps.Copy(owners, j.rec.Progress.Owners)
		owners[d.Snapshot] = s.Address
		j.rec.Progress.Owners = owners
	}
}

// owners are those that were noted.
func (j *job) owners() map[string]string {
	j.node.mu.Lock()
	defer j.node.mu.Unlock()
	return j.rec.Progress.Owners
}

// standing finds out who has a disk's volume: by its header, or by the word of a host that sees it.
func (n *Node) standing(ctx context.Context, j *job, d *api.ManifestDisk) (Standing, error) {
	now, err := n.config.Sources.Owner(ctx, d)
	if err == nil {
		return now, nil
	}
	for _, address := range j.hosts(d) {
		var answer api.PeerStanding
		asked, cancel := context.WithTimeout(ctx, asking)
		failed := n.config.Peers.Call(asked, address, api.PathPeerOwner, j.snapshot(d), &answer)
		cancel()
		if failed == nil {
			return Standing(answer), nil
		}
		err = errors.Join(err, failed)
	}
	return Standing{}, err
}

// pulled is a disk that a host reads.
type pulled struct {
	blockdev.Device
	node    *Node
	job     *job
	disk    *api.ManifestDisk
	address string
	ask     api.PeerPull
	why     string

	mu      sync.Mutex
	cursor  int64 // as the host said last: what is below is refused
	fate    error // for good
	extents []blockdev.Extent
}

// pull has a host export a disk, and connects.
func (n *Node) pull(ctx context.Context, j *job, d *api.ManifestDisk, address string) (*pulled, error) {
	host, _, err := peer.ParseAddress(address, peer.DefaultPort)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, pullOpening)
	defer cancel()
	p := &pulled{node: n, job: j, disk: d, address: address, ask: api.PeerPull{PeerSnapshot: j.snapshot(d), Size: d.Size}}
	a, err := p.call(ctx, api.PathPeerPull, p.ask)
	if remote := new(api.RemoteError); errors.As(err, &remote) && remote.Older {
		return nil, fmt.Errorf("its virt-cow is of a version that exports nothing: upgrade it: %w", err)
	}
	if err != nil {
		return nil, err
	}
	p.ask.Export = a.Export
	at := net.JoinHostPort(host, strconv.Itoa(a.Port))
	config, explain, err := n.config.Identity.To(ctx, at)
	if err != nil {
		return nil, err
	}
	dev, err := nbd.Dial(ctx, "nbds://"+at+"/"+a.Export, nbd.Options{ReadOnly: true, Timeout: pullReading, TLS: config, Log: j.log})
	if err != nil {
		if dial := new(net.OpError); errors.As(err, &dial) && dial.Op == "dial" {
			return nil, fmt.Errorf("%w: a firewall must let this node through to the ports that pull_ports in [backup] of its configuration has", err)
		}
		return nil, explain(err)
	}
	if size := dev.Info().Size; size != d.Size {
		return nil, errors.Join(fmt.Errorf("%s has %d bytes, the disk has %d", dev.Info().Name, size, d.Size), dev.Close())
	}
	p.Device = dev
	return p, nil
}

// call asks the host.
func (p *pulled) call(ctx context.Context, path string, in any) (*api.PullAnswer, error) {
	var a api.PullAnswer
	if err := p.node.config.Peers.Call(ctx, p.address, path, in, &a); err != nil {
		return nil, err
	}
	if a.Error != "" {
		err := &told{text: a.Error}
		if a.Final {
			err.is = append(err.is, ErrGivenUp)
		}
		if a.Broken {
			err.is = append(err.is, reader.ErrBroken)
		}
		return nil, err
	}
	p.mu.Lock()
	p.cursor = max(p.cursor, a.Cursor)
	p.mu.Unlock()
	p.job.owner(p.disk, Standing(a.PeerStanding))
	return &a, nil
}

// told is an error that a host's reader had: it is the same here.
type told struct {
	text string
	is   []error
}

func (t *told) Error() string   { return t.text }
func (t *told) Unwrap() []error { return t.is }

// check is the reader's own: what can't be read any more fails for good, as it does for a node that sees the disk.
func (p *pulled) check(off int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fate == nil && off < p.cursor {
		return fmt.Errorf("%w: %s: offset %d: %w, %d", ErrGivenUp, p.disk.Volume, off, reader.ErrReleased, p.cursor)
	}
	return p.fate
}

// ReadAt implements Source.
func (p *pulled) ReadAt(b []byte, off int64) (int, error) {
	if err := p.check(off); err != nil {
		return 0, err
	}
	n, err := p.Device.ReadAt(b, off)
	if err == nil {
		return n, nil
	}
	// NBD has no words for what is for good.
	ctx, cancel := context.WithTimeout(context.Background(), asking)
	defer cancel()
	if _, fate := p.look(ctx, -1); errors.Is(fate, ErrGivenUp) {
		return n, fate
	}
	return n, fmt.Errorf("host %s, whose journalctl -u virt-cow may say more: %w", p.address, err)
}

// ahead is how far ahead a host is asked for what reads as zeros, bytes: a disk of zeros would be all questions otherwise.
const ahead = 64 << 20

// Extents implements Source. What reads as zeros as of the cut does so for ever, if a look says so.
func (p *pulled) Extents(off, length int64) ([]blockdev.Extent, error) {
	if err := p.check(off); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.extents
	if len(e) == 0 || off < e[0].Offset || off+length > e[len(e)-1].Offset+e[len(e)-1].Length {
		var err error
		if e, err = p.Device.Extents(off, max(length, min(ahead, p.disk.Size-off))); err != nil {
			return nil, err
		}
		p.extents = e
	}
	var out []blockdev.Extent
	for _, x := range e {
		if from, to := max(x.Offset, off), min(x.Offset+x.Length, off+length); from < to {
			x.Offset, x.Length = from, to-from
			out = append(out, x)
		}
	}
	return out, nil
}

// Look implements Source: the host looks, and the export's own reader judges what it has read.
func (p *pulled) Look(ctx context.Context, released int64) (Standing, error) {
	if err := p.check(p.disk.Size); err != nil {
		return Standing{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	a, err := p.look(ctx, released)
	if err != nil {
		return Standing{}, err
	}
	return Standing(a.PeerStanding), nil
}

func (p *pulled) look(ctx context.Context, released int64) (*api.PullAnswer, error) {
	ask := p.ask
	ask.Cursor = released
	a, err := p.call(ctx, api.PathPeerPullLook, ask)
	if err == nil {
		return a, nil
	}
	err = fmt.Errorf("host %s: %w", p.address, err)
	if errors.Is(err, ErrGivenUp) {
		p.mu.Lock()
		p.fate = err
		p.mu.Unlock()
	}
	return nil, err
}

// Via implements Source.
func (p *pulled) Via() (via, why string) { return "nbd", p.why }
