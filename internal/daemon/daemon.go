// Package daemon gives guests their disks: it keeps a registry of volumes, starts one engine process for each
// volume in use, and brings what libvirt says of a domain in line with what the domain should have.
//
// Nothing here moves data. An engine process is the same program run as "virt-cow serve"; it is spoken to
// through package api only, is in a session of its own, outlives the daemon, and is found again by the next
// one through a record in the run folder.
//
// A domain is reconciled, never reacted to: each event only says which domain to look at. The looking is
// serialised per domain; what fails is tried again with backoff, and what is well is looked at again, less and
// less often, in case an event was lost.
//
//	desired                    actual                          done
//	in metadata, domain runs   no engine                       start it
//	in metadata, domain runs   engine, no disk                 attach
//	in metadata, domain runs   disk                            nothing
//	in metadata, domain off    engine                          stop it cleanly
//	not in metadata            disk that the daemon plugged in detach; DEVICE_REMOVED leads to the next line
//	not in metadata            engine, no disk                 stop it cleanly
//	disk of the definition, or plugged in by hand              start its engine, leave the disk alone
//	the same, domain off       engine                          stop it cleanly, unless a start was announced
//	any                        guest paused by an I/O error    resume, once its disks of ours are served, whatever else is wrong
//
// A domain that is about to start is announced by the hook (Prepare), for the disks of its definition. What was
// plugged in by the daemon stands in the volume's spec, so that the next daemon knows.
//
// Lock order: a domain's operation lock, a volume's operation lock, Daemon.mu. Daemon.mu is never held across a call to libvirt or
// to an engine.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cut"
	"github.com/virt-cow/virt-cow/internal/inventory"
	"github.com/virt-cow/virt-cow/internal/launch"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/metrics"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// Config says where things are and who does what.
type Config struct {
	RunDir       string // sockets and specs; on tmpfs
	QEMURunDir   string // where libvirt writes the process ids of its guests
	Version      string
	Group        string // QEMU's, that gets the NBD sockets, "" for root's
	ControlGroup int    // that may use the control socket besides root; 0 for none
	MetricsAddr  string // where Prometheus may read; "" for nowhere but the control socket

	Dial      func(context.Context) (libvirtx.Conn, error)
	Launcher  launch.Launcher
	Plugins   *plugin.Runner
	Inventory inventory.Config // without its functions
	Ready     func()           // called once the control socket answers; may be nil

	Peers        Peers         // nil: no other host is spoken to, and nothing migrates
	PeerTimeout  time.Duration // of a question that is answered at once
	FenceCommand string        // that makes sure that a host is dead, "" for none
	FenceTimeout time.Duration // of it
	Reservations bool          // stores' LUNs are kept from other hosts by SCSI persistent reservations

	Backup BackupConfig
}

// Daemon is the control daemon of one host.
type Daemon struct {
	config Config
	log    zerolog.Logger
	root   context.Context // ends with the daemon
	tasks  sync.WaitGroup

	started   time.Time
	counters  counters
	inventory *inventory.Inventory
	fencing   sync.Mutex // held while a host is fenced
	fenced    fenced     // the last that was; guarded by fencing

	exports      exports
	cutter       *cut.Cutter
	stores       snapshotStores
	snapshotsDue chan struct{} // has snapshots looked at soon
	notingBackup sync.Mutex    // held while a backup's record is written; before mu

	mu           sync.Mutex
	conn         libvirtx.Conn // nil while there is none
	connError    error
	connVersion  uint64
	volumes      map[string]*volume // by name
	domains      map[uuid.UUID]*domain
	orphansAsked bool // engines that no domain claims are looked for once a connection

	backups map[uuid.UUID]*api.BackupStatus // the last of each domain

	guestWrites map[uuid.UUID]*watched // around the backups of each domain
	beginning   map[uuid.UUID]bool     // domains whose backup is being begun
	notes       []api.SnapshotNote     // of the last look at the snapshots
}

// Waits between attempts at what failed.
var (
	connectBackoff   = libvirtx.Backoff{Min: 200 * time.Millisecond, Max: 10 * time.Second}
	reconcileBackoff = libvirtx.Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second}
	engineBackoff    = libvirtx.Backoff{Min: 200 * time.Millisecond, Max: 30 * time.Second}
)

// resyncBackoff is how long after an event a domain with volumes is looked at again, although all was well.
var resyncBackoff = libvirtx.Backoff{Min: time.Second, Max: time.Minute}

// ErrRunning says that another daemon has the run folder.
var ErrRunning = errors.New("another virt-cow daemon is running")

// Run is the daemon's life: it ends with ctx. Guests and engines go on.
func Run(ctx context.Context, c Config, log zerolog.Logger) error {
	if err := os.MkdirAll(c.RunDir, 0o755); err != nil {
		return err
	}
	unlock, err := lockRunDir(c.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := context.WithCancel(ctx)
	d := &Daemon{
		config: c, log: log, root: ctx,
		volumes: map[string]*volume{}, domains: map[uuid.UUID]*domain{},
		connError: errors.New("not tried yet"), started: time.Now(),
	}
	defer cancel()
	if err := d.openInventory(); err != nil {
		return err
	}
	defer d.inventory.Close() // once nothing uses it
	defer d.tasks.Wait()
	defer cancel()
	// Not waited for: one dead disk would keep all guests of the host from starting.
	d.tasks.Go(func() { d.inventory.Recover(ctx) })
	if err := d.openCuts(); err != nil {
		return err
	}
	if err := d.adopt(); err != nil {
		return err
	}
	d.tasks.Go(func() { d.cutter.Run(ctx) })
	d.tasks.Go(func() { d.watchSnapshots(ctx) })
	d.goOnWithBackups(ctx)
	l, err := d.listen()
	if err != nil {
		return err
	}
	if c.MetricsAddr != "" {
		d.tasks.Go(func() {
			if err := metrics.Serve(ctx, c.MetricsAddr, metrics.Handler(d.Status), log); err != nil && ctx.Err() == nil {
				log.Error().Err(err).Str("address", c.MetricsAddr).Msg("no metrics over TCP")
			}
		})
	}
	if c.Peers != nil {
		d.tasks.Go(func() {
			if err := c.Peers.Serve(ctx, d.peerHandler()); err != nil && ctx.Err() == nil {
				log.Error().Err(err).Msg("other hosts are not answered: no live migration")
			}
		})
	}
	d.tasks.Go(func() { d.watch(ctx) })
	// From here on the hook is answered: only then may guests start, and libvirt be asked for them.
	if c.Ready != nil {
		c.Ready()
	}
	d.tasks.Go(func() { libvirtx.Keep(ctx, c.Dial, d, connectBackoff, log) })
	log.Info().Str("socket", l.Addr().String()).Msg("daemon ready")
	return d.serve(ctx, l)
}

// lockRunDir makes sure of being alone. The lock ends with the process, however it ends.
func lockRunDir(dir string) (unlock func(), err error) {
	path := filepath.Join(dir, "daemon.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: it holds %s", ErrRunning, path)
	}
	return func() { f.Close() }, nil
}

// Connected takes a new connection and looks at every domain, those libvirt no longer knows too.
func (d *Daemon) Connected(c libvirtx.Conn) {
	version, err := c.Version(d.root)
	if err != nil {
		c.Close()
		return
	}
	list, err := c.Domains(d.root)
	if err != nil {
		d.log.Error().Err(err).Msg("list of domains")
		c.Close() // and so another connection, with another list
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counters.connects.Add(1)
	d.conn, d.connError, d.connVersion, d.orphansAsked = c, nil, version, false
	for _, x := range list {
		d.domainFor(x)
	}
	for _, m := range d.domains {
		m.looked = false
		m.kick()
	}
	if len(d.domains) == 0 {
		d.tasks.Go(func() { d.stopOrphans(d.root) })
	}
	d.tasks.Go(func() { d.inventory.Recover(d.root) }) // what needs libvirt's pools
}

// Event looks at the domain it is about.
func (d *Daemon) Event(e libvirtx.Event) {
	switch e := e.(type) {
	case libvirtx.IOError:
		d.mu.Lock()
		d.domainFor(e.Domain).noteIOError(e.Alias)
		d.mu.Unlock()
		d.log.Warn().Str("domain", e.Domain.Name).Str("disk", e.Alias).Str("reason", e.Reason).Msg("guest's disk failed a request")
	case libvirtx.DeviceRemoved:
		d.removalOver(e.Domain, e.Alias)
	case libvirtx.DeviceRemovalFailed:
		d.removalOver(e.Domain, e.Alias)
		d.log.Warn().Str("domain", e.Domain.Name).Str("disk", e.Alias).Msg("guest does not let go of the disk, asking again")
		return // asked again by backoff
	case libvirtx.MetadataChanged:
		if e.Namespace != libvirtx.Namespace {
			return
		}
	}
	d.followDomain(e.Subject())
	d.poke(e.Subject())
}

// Disconnected leaves everything as it is until there is a connection again.
func (d *Daemon) Disconnected(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn, d.connError = nil, err
}

// ErrNoLibvirt says that there is no connection to libvirt now.
var ErrNoLibvirt = errors.New("not connected to libvirt")

func (d *Daemon) libvirt() (libvirtx.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn == nil {
		return nil, fmt.Errorf("%w: %w", ErrNoLibvirt, d.connError)
	}
	return d.conn, nil
}
