package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// services that answer as libvirt, by their socket.
var services = map[string]string{
	"/run/libvirt/libvirt-sock":   "libvirtd.socket",
	"/run/libvirt/virtqemud-sock": "virtqemud.socket",
}

func libvirt(ctx context.Context, h *Host) []Finding {
	socket := h.Config.Config.Libvirt.Socket
	f := Finding{Result: Problem, Why: "without libvirt no guest is seen: nothing is attached, and no new guest gets its volumes"}
	if _, err := os.Stat(h.path(socket)); errors.Is(err, fs.ErrNotExist) {
		f.Seen, f.Mend = "there is no "+socket, "systemctl enable --now "+serviceOf(socket)
		for other := range services {
			if other != socket && h.exists(other) {
				f.Seen += ", but there is " + other
				f.Mend = fmt.Sprintf("set socket = %q in [libvirt] of /etc/virt-cow/config.toml, then systemctl restart virt-cow", other)
			}
		}
		return []Finding{f}
	}
	conn, err := h.Dial(ctx, h.path(socket))
	if err == nil {
		var version uint64
		if version, err = conn.Version(ctx); err == nil {
			h.libvirt = conn
			if h.daemon != nil && !h.daemon.Libvirt.Connected {
				f.Seen = "it answers, but the daemon has no connection: " + h.daemon.Libvirt.Error
				f.Mend = "systemctl restart virt-cow"
				return []Finding{f}
			}
			return well("%d.%d.%d answers at %s", version/1000000, version/1000%1000, version%1000, socket)
		}
		conn.Close()
	}
	f.Seen = err.Error()
	switch {
	case errors.Is(err, fs.ErrPermission):
		f.Result, f.Seen, f.Mend = Skipped, socket+": "+err.Error(), "sudo virt-cow doctor"
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Seen = "nobody listens at " + socket
		f.Mend = "systemctl restart " + serviceOf(socket)
	case errors.Is(err, context.DeadlineExceeded):
		f.Seen = "it does not answer at " + socket
		f.Mend = "systemctl status " + serviceOf(socket) + " # restart it if it hangs: guests go on"
	default:
		f.Mend = "virsh -c qemu:///system list; journalctl -u libvirtd -u virtqemud"
	}
	return []Finding{f}
}

func serviceOf(socket string) string {
	if s := services[socket]; s != "" {
		return s
	}
	return "libvirtd.socket"
}

func pciPorts(ctx context.Context, h *Host) []Finding {
	if h.libvirt == nil {
		return skipped("libvirt does not answer")
	}
	domains, err := h.libvirt.Domains(ctx)
	if err != nil {
		return skipped("libvirt: %v", err)
	}
	var found []Finding
	running := 0
	var full []string
	for _, d := range domains {
		state, err := h.libvirt.State(ctx, d)
		if err != nil || !state.Active {
			continue
		}
		running++
		xml, err := h.libvirt.XML(ctx, d)
		if err != nil {
			continue
		}
		p, err := portsOf(xml)
		if err != nil || !p.q35 || p.free() > 0 {
			continue
		}
		if meta, err := h.libvirt.Metadata(ctx, d); err == nil && meta == "" && !usesUs(xml, h.Config.Config.RunDir) {
			full = append(full, d.Name)
			continue
		}
		found = append(found, noPort(d.Name, p))
	}
	if ctx.Err() != nil {
		return append(found, skipped("libvirt is slow: not all of %d domains were looked at", len(domains))...)
	}
	if found != nil {
		return found
	}
	if full != nil {
		return well("of %d running domains those without virt-cow's disks that have no free port: %s", running, some(full))
	}
	return well("all of %d running domains have room for a disk, or are not of the machine type q35", running)
}

func noPort(domain string, p ports) Finding {
	return Finding{
		Result: Warning, Seen: fmt.Sprintf("%s: all of its %d pcie-root-ports are taken", domain, p.roots),
		Why: "a q35 guest needs a free port for each virtio disk that is plugged in, and ports can't be plugged in",
		Mend: "virsh edit " + quote(domain) + ": add one <controller type='pci' model='pcie-root-port'/> for each disk to come, " +
			"then shut the guest down and start it; or attach with --bus scsi",
	}
}

func usesUs(xml, runDir string) bool {
	disks, err := libvirtx.Disks(xml)
	if err != nil {
		return false
	}
	for _, d := range disks {
		if within(d.Socket, runDir) {
			return true
		}
	}
	return false
}
