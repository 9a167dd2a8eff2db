package daemon

import (
	"errors"
	"sync"
	"time"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// domain is what the daemon keeps of a domain, with a goroutine that reconciles it.
type domain struct {
	d     *Daemon
	kicks chan struct{} // one is enough: it means look again

	op   sync.Mutex // held during a reconciliation and by the control API: one thing at a time
	gone bool       // no longer in Daemon.domains; guarded by op

	resumes resumes

	looked bool            // since the connection to libvirt was made; guarded by Daemon.mu
	seen   bool            // what it has and should have is known; guarded by Daemon.mu
	names  map[string]bool // of the volumes that it has or should have, as it was seen last; guarded by Daemon.mu
	err    error           // what is wrong with its disks as a whole; guarded by Daemon.mu

	mu       sync.Mutex
	id       libvirtx.Domain
	ioErrors map[string]bool      // aliases of disks that failed a request since the guest ran last
	takenAt  map[string]time.Time // by alias: when the guest was asked last to let go of a disk
	watchers []chan struct{}      // closed after the next reconciliation
}

func newDomain(d *Daemon, x libvirtx.Domain) *domain {
	return &domain{d: d, id: x, kicks: make(chan struct{}, 1), ioErrors: map[string]bool{}, takenAt: map[string]time.Time{}}
}

func (m *domain) ident() libvirtx.Domain {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.id
}

func (m *domain) name() string { return m.ident().Name }

func (m *domain) rename(x libvirtx.Domain) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if x.Name != "" {
		m.id.Name = x.Name
	}
}

// kick asks for a reconciliation.
func (m *domain) kick() {
	select {
	case m.kicks <- struct{}{}:
	default:
	}
}

func (m *domain) noteIOError(alias string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ioErrors[alias] = true
}

// clearIOErrors forgets which disks failed.
func (m *domain) clearIOErrors() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.ioErrors)
}

// mayTakeBack says whether the guest may be asked now to let go of a disk, and takes it that it is.
func (m *domain) mayTakeBack(alias string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.takenAt[alias]) < takeBackAgain {
		return false
	}
	m.takenAt[alias] = time.Now()
	return true
}

// removalOver forgets that the guest was asked to let go of a disk.
func (m *domain) removalOver(alias string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.takenAt, alias)
}

// removalOver notes that a guest has let go of a disk, or has refused to.
func (d *Daemon) removalOver(x libvirtx.Domain, alias string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.domainFor(x).removalOver(alias)
}

// reconciled is closed after the next reconciliation.
func (m *domain) reconciled() <-chan struct{} {
	ch := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watchers = append(m.watchers, ch)
	return ch
}

func (m *domain) tellWatchers() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, ch := range m.watchers {
		close(ch)
	}
	m.watchers = nil
}

// run reconciles whenever asked to, again with backoff after what did not succeed, and now and then for no
// reason: right after its start libvirtd itself does not know yet what became of a guest, and an event that
// was lost must not matter.
func (m *domain) run() {
	var wait, quiet time.Duration
	var again <-chan time.Time
	var last string
	for {
		select {
		case <-m.d.root.Done():
			return
		case <-m.kicks:
			quiet = 0
		case <-again:
		}
		m.op.Lock()
		err := m.reconcile(m.d.root)
		m.d.counters.reconciles.Add(1)
		over := errors.Is(err, libvirtx.ErrNoDomain) && m.d.forgetDomain(m)
		m.gone = over
		m.op.Unlock()
		m.tellWatchers()
		if over {
			return
		}
		again = nil
		if err == nil || errors.Is(err, libvirtx.ErrNoDomain) {
			wait, last = 0, ""
			if len(m.d.volumesOf(m)) > 0 {
				quiet = resyncBackoff.Next(quiet)
				again = time.After(quiet)
			}
			continue
		}
		if m.d.root.Err() != nil {
			return
		}
		wait = reconcileBackoff.Next(wait)
		again = time.After(wait)
		// Once, not at each attempt; an engine's end was logged where it was seen.
		if err.Error() != last && !errors.Is(err, errUnfinished) && !errors.Is(err, errEnded) {
			last = err.Error()
			m.d.counters.reconcileErrors.Add(1)
			m.d.log.Error().Err(err).Str("domain", m.name()).Msg("reconcile, trying on")
		}
	}
}

// poke has a domain looked at.
func (d *Daemon) poke(x libvirtx.Domain) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.domainFor(x).kick() // under the lock: a domain with a kick is not forgotten
}

// lockDomain takes a domain's operation lock.
func (d *Daemon) lockDomain(x libvirtx.Domain) *domain {
	for {
		d.mu.Lock()
		m := d.domainFor(x)
		d.mu.Unlock()
		m.op.Lock()
		if !m.gone {
			return m
		}
		m.op.Unlock()
	}
}

// domainFor finds or makes what the daemon keeps of a domain, and takes note of its present name. The caller
// holds d.mu.
func (d *Daemon) domainFor(x libvirtx.Domain) *domain {
	dom := d.domains[x.UUID]
	if dom == nil {
		dom = newDomain(d, x)
		d.domains[x.UUID] = dom
		d.tasks.Go(dom.run)
	}
	dom.rename(x)
	return dom
}

// forgetDomain drops a domain that libvirt no longer knows, unless something of it is left or to be looked at.
// The caller holds m.op.
func (d *Daemon) forgetDomain(m *domain) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range d.volumes {
		if v.domain == m {
			return false
		}
	}
	if len(m.kicks) > 0 {
		return false
	}
	delete(d.domains, m.ident().UUID)
	return true
}

// noteLooked records that a domain was looked at over this connection.
func (d *Daemon) noteLooked(m *domain) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m.looked = true
}

// noteSeen records which volumes a domain has and should have. The registry knows only one domain of a volume, and that may go.
func (d *Daemon) noteSeen(m *domain, v view) {
	names := map[string]bool{}
	for _, w := range v.wants {
		names[w.Volume] = true
	}
	for name := range v.disks {
		names[name] = true
	}
	for name := range v.declared {
		names[name] = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	m.seen, m.names = true, names
}

// noteProblem records what is wrong with a domain's disks as a whole, nil for nothing.
func (d *Daemon) noteProblem(m *domain, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m.err = err
}
