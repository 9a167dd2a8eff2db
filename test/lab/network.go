package lab

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Network is one of the networks of a site.
type Network int

// The networks.
const (
	Mgmt    Network = iota // 10.77.0.N: libvirt and migration; a host's name is its address here
	Control                // 10.78.0.N: virt-cow's daemons; NAME-ctl
)

var networks = []Network{Mgmt, Control}

func (n Network) String() string { return [...]string{"mgmt", "ctl"}[n] }

// adminAddress is the last byte of the Admin's.
const adminAddress = 254

// Address is a host's address on a network, as 10.77.0.1.
func (h *Host) Address(n Network) string {
	last := h.index + 1
	if h.index < 0 {
		last = adminAddress
	}
	return fmt.Sprintf("10.%d.0.%d", 77+int(n), last)
}

// URI is libvirtd's, for the others.
func (h *Host) URI() string { return "qemu+tcp://" + h.Name + "/system" }

// Link is what two hosts have of a network between them. A bridge in the Admin's namespace has a port for each.
type Link struct {
	Network Network
	a, b    *Host

	mu    sync.Mutex
	state linkState
}

type linkState int

const (
	linkUp linkState = iota
	linkCut
	linkDown
)

// Link is what two hosts of the site have of a network between them.
func (s *Site) Link(n Network, a, b *Host) *Link {
	for _, l := range s.links {
		if l.Network == n && (l.a == a && l.b == b || l.a == b && l.b == a) {
			return l
		}
	}
	panic(fmt.Sprintf("no link %s between %s and %s", n, a.Name, b.Name))
}

// Cut loses every packet from now on. Neither side is told.
func (l *Link) Cut(ctx context.Context) error { return l.set(ctx, linkCut) }

// Down is as if the cable was pulled: both sides lose the carrier.
func (l *Link) Down(ctx context.Context) error { return l.set(ctx, linkDown) }

// Heal undoes Cut and Down.
func (l *Link) Heal(ctx context.Context) error { return l.set(ctx, linkUp) }

// Cut cuts two hosts off from each other, on all networks. They still see the Admin, and the same disks.
func (s *Site) Cut(ctx context.Context, a, b *Host) error {
	for _, n := range networks {
		if err := s.Link(n, a, b).Cut(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Heal heals all links between two hosts.
func (s *Site) Heal(ctx context.Context, a, b *Host) error {
	for _, n := range networks {
		if err := s.Link(n, a, b).Heal(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (l *Link) bridge() string { return fmt.Sprintf("%s-%d-%d", l.Network, l.a.index, l.b.index) }

// port is the bridge's towards one of the two.
func (l *Link) port(h *Host) string {
	return fmt.Sprintf("%c%dof%d-%d", l.Network.String()[0], h.index, l.a.index, l.b.index)
}

func (l *Link) set(ctx context.Context, state linkState) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = state
	for _, h := range []*Host{l.a, l.b} {
		if h.pid() == 0 { // its port is made when it comes up
			continue
		}
		if err := l.apply(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

// apply brings one port into the link's state.
func (l *Link) apply(ctx context.Context, h *Host) error {
	admin, port := l.a.site.Admin, l.port(h)
	switch l.state {
	case linkUp: // which has the bridge forward again
		return admin.ip(ctx, "link set "+port+" down", "link set "+port+" up")
	case linkCut:
		if _, err := admin.Run(ctx, "bridge", "link", "set", "dev", port, "state", "disabled"); err == nil {
			return nil
		}
		// A port without a carrier has no state to be set.
	}
	return admin.ip(ctx, "link set "+port+" down")
}

// addLinks makes the bridges.
func (s *Site) addLinks(ctx context.Context) error {
	var batch []string
	for i, a := range s.Hosts {
		for _, b := range s.Hosts[i+1:] {
			for _, n := range networks {
				l := &Link{Network: n, a: a, b: b}
				s.links = append(s.links, l)
				batch = append(batch, "link add "+l.bridge()+" type bridge", "link set "+l.bridge()+" up")
			}
		}
	}
	return s.Admin.ip(ctx, batch...)
}

// connect gives a host that has just come up its interfaces: one a link, with its address on that network and the
// other's as the peer's.
func (h *Host) connect(ctx context.Context) error {
	admin := h.site.Admin
	end := func(name, address, peer string) []string {
		return []string{"addr add " + address + " peer " + peer + " dev " + name, "link set " + name + " up"}
	}
	// A host that was off has its hardware addresses still: the others remember them.
	cable := func(inside, outside string, n Network, other int) error {
		mac := fmt.Sprintf("02:77:00:%02x:%02x:%02x", int(n), h.index+1, other+1)
		add := fmt.Sprintf("link add %s address %s netns %d type veth peer name %s netns %d", inside, mac, h.pid(), outside, admin.pid())
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			err := ip(ctx, nil, add)
			// The kernel takes a dead host's cables away when it finds the time.
			if err == nil || !strings.Contains(err.Error(), "File exists") || time.Now().After(deadline) {
				return err
			}
		}
	}
	port := fmt.Sprintf("host-%d", h.index)
	if err := cable("mgmt-admin", port, Mgmt, adminAddress-1); err != nil {
		return err
	}
	if err := admin.ip(ctx, end(port, admin.Address(Mgmt), h.Address(Mgmt))...); err != nil {
		return err
	}
	batch := end("mgmt-admin", h.Address(Mgmt), admin.Address(Mgmt))
	for _, l := range h.site.links {
		other := l.b
		if h == l.b {
			other = l.a
		} else if h != l.a {
			continue
		}
		name := l.Network.String() + "-" + other.Name
		if err := cable(name, l.port(h), l.Network, other.index); err != nil {
			return err
		}
		l.mu.Lock()
		state := l.state
		l.mu.Unlock()
		wire := []string{"link set " + l.port(h) + " master " + l.bridge()}
		if state == linkUp {
			wire = append(wire, "link set "+l.port(h)+" up")
		}
		if err := admin.ip(ctx, wire...); err != nil {
			return err
		}
		batch = append(batch, end(name, h.Address(l.Network), other.Address(l.Network))...)
	}
	return h.ip(ctx, batch...)
}

// ip runs commands of ip in the host's network namespace.
func (h *Host) ip(ctx context.Context, batch ...string) error {
	return ip(ctx, []string{"nsenter", "-t", strconv.Itoa(h.pid()), "-n", "--"}, batch...)
}

func ip(ctx context.Context, before []string, batch ...string) error {
	args := append(append([]string(nil), before...), "ip", "-batch", "-")
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(strings.Join(batch, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(batch, "; "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// siteConfig adds to a host's files what makes it one of several.
func (h *Host) siteConfig(files map[string]string) {
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n")
	for _, o := range append([]*Host{h.site.Admin}, h.site.Hosts...) {
		fmt.Fprintf(&hosts, "%s %s\n%s %s-ctl\n", o.Address(Mgmt), o.Name, o.Address(Control), o.Name)
	}
	files["hosts"] = hosts.String()
	files["boot_id"] = "" // made with each boot
	files["etc/qemu.conf"] += fmt.Sprintf("migration_host = \"%s\"\n", h.Address(Mgmt))
	files["etc/libvirtd.conf"] += "listen_tcp = 1\nauth_tcp = \"none\"\n"
}
