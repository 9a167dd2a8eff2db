package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/nbd"
	"github.com/virt-cow/virt-cow/internal/peer"
	"github.com/virt-cow/virt-cow/internal/reader"
)

// How long an export lasts that nobody is connected to: before the first connection, and after the last.
const (
	firstClient = time.Minute
	nextClient  = 10 * time.Second
)

// exportGrace is how long an export that ends waits for what is being read.
const exportGrace = 2 * time.Second

// errIdle ends an export.
var errIdle = errors.New("nobody is connected")

// Export is a host's side of a disk that the image node can't see, and a process of its own: a disk that hangs, hangs nothing else. It
// reads the disk as the node would, and exports it to the node alone. in and out are as api.PullSpec says; it ends with in, and
// when nobody is connected any more.
func Export(ctx context.Context, in io.Reader, out io.Writer, log zerolog.Logger) error {
	var spec api.PullSpec
	lines, answers := json.NewDecoder(in), json.NewEncoder(out)
	if err := lines.Decode(&spec); err != nil {
		return fmt.Errorf("what to export: %w", err)
	}
	log = log.With().Str("volume", spec.Disk.Volume).Str("snapshot", spec.Disk.Snapshot).Logger()
	s, err := openHere(ctx, &spec, log)
	if err != nil {
		return answers.Encode(failed(err))
	}
	defer s.Close()
	x := &export{lun: s, log: log}
	first := x.look(ctx, s.Cursor())
	if first.Error != "" {
		return answers.Encode(first)
	}
	l, err := listenIn(ctx, &spec)
	if err != nil {
		return answers.Encode(failed(err))
	}
	backend, err := nbd.ReadOnly(x)
	if err != nil {
		return err
	}
	id := peer.NewIdentity(peer.Files{CA: spec.CA, Cert: spec.Cert, Key: spec.Key}, log)
	server := &nbd.Server{Name: spec.Export, Backend: backend, Log: log, Limits: nbd.Limits{Conns: 4}}
	first.Export, first.Port = spec.Export, l.Addr().(*net.TCPAddr).Port
	if err := answers.Encode(first); err != nil {
		return err
	}
	log.Info().Stringer("address", l.Addr()).Str("node", spec.Node).Msg("exported to the image node, which does not see it")
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { cancel(x.answer(ctx, lines, answers)) }() // it waits for in, which may stay open
	go func() { cancel(idle(ctx, server)) }()
	if err := server.ServeTLS(ctx, l, id.OnlyFrom(spec.Node)); ctx.Err() == nil {
		return err
	}
	log.Info().AnErr("reason", context.Cause(ctx)).Msg("export ended")
	grace, stop := context.WithTimeout(context.Background(), exportGrace)
	defer stop()
	_ = server.Shutdown(grace) // what still reads then, hangs
	return nil
}

// export is one.
type export struct {
	*lun
	log  zerolog.Logger
	told sync.Map // texts of errors: each is logged once
}

// openHere opens a disk at the places that the host's daemon has named.
func openHere(ctx context.Context, spec *api.PullSpec, log zerolog.Logger) (*lun, error) {
	if !api.IsUUID(spec.Disk.Snapshot) {
		return nil, fmt.Errorf("snapshot %q is no UUID", spec.Disk.Snapshot)
	}
	p := Places{Scan: func(context.Context, []string) ([]Found, error) { return nil, nil }}
	for _, at := range []*api.Place{&spec.Disk.Store, &spec.Disk.Saves, spec.Disk.Origin, spec.Disk.Master} {
		if at != nil {
			p.Devices = append(p.Devices, globOf(at.Address))
		}
	}
	s := &lun{}
	if err := (&luns{newFinder(p), log}).open(ctx, &spec.Disk, s); err != nil {
		if errors.Is(err, ErrNotSeen) {
			err = fmt.Errorf("a disk is not where this host has noted it, `virt-cow volume scan` may find it: %w", err)
		}
		return nil, errors.Join(judge(err), s.closeUnder())
	}
	return s, nil
}

// globOf matches a path and nothing else.
func globOf(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// listenIn listens at the first of the ports that is free.
func listenIn(ctx context.Context, spec *api.PullSpec) (net.Listener, error) {
	for port := spec.From; port <= spec.To; port++ {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(spec.Listen, strconv.Itoa(port)))
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
			return l, err
		}
	}
	return nil, fmt.Errorf("all ports from %d to %d are taken: give pull_ports in [backup] of the configuration more", spec.From, spec.To)
}

func failed(err error) *api.PullAnswer {
	return &api.PullAnswer{Error: err.Error(), Final: errors.Is(err, ErrGivenUp), Broken: errors.Is(err, reader.ErrBroken)}
}

func (x *export) look(ctx context.Context, released int64) *api.PullAnswer {
	if released < 0 {
		if err := x.Flush(); err != nil {
			return failed(judge(err))
		}
		return &api.PullAnswer{Cursor: x.Cursor()}
	}
	now, err := x.Look(ctx, released)
	if err != nil {
		return failed(err)
	}
	return &api.PullAnswer{PeerStanding: api.PeerStanding(now), Cursor: x.Cursor()}
}

// answer makes looks until there is nobody who wants them.
func (x *export) answer(ctx context.Context, lines *json.Decoder, answers *json.Encoder) error {
	for {
		var l api.PullLook
		if err := lines.Decode(&l); err != nil {
			return err
		}
		if err := answers.Encode(x.look(ctx, l.Released)); err != nil {
			return err
		}
	}
}

// ReadAt logs what the node is told less of.
func (x *export) ReadAt(p []byte, off int64) (int, error) {
	n, err := x.lun.ReadAt(p, off)
	if err != nil {
		if _, again := x.told.LoadOrStore(err.Error(), true); !again {
			x.log.Error().Err(err).Int64("offset", off).Msg("the image node can't have what it asked for")
		}
	}
	return n, err
}

// idle returns once nobody has been connected for a while.
func idle(ctx context.Context, s *nbd.Server) error {
	patience, since := firstClient, time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
		if s.Conns() > 0 {
			patience, since = nextClient, time.Now()
		}
		if time.Since(since) > patience {
			return errIdle
		}
	}
}
