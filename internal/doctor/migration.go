package doctor

import (
	"context"
	"strconv"
	"strings"

	"github.com/virt-cow/virt-cow/internal/peer"
)

// otherHosts looks at whether any may ask, and whether somebody hears them.
func otherHosts(_ context.Context, h *Host) []Finding {
	m := h.Config.Config.Migration
	f := Finding{Result: Skipped, Why: whyMigrate}
	switch {
	case len(m.Hosts) == 0:
		f.Seen = "none may ask this one: migration.hosts is empty"
		f.Mend = `add hosts = ["*.hv.example.com"], the names in their certificates, to [migration] of /etc/virt-cow/config.toml, then ` +
			"systemctl restart virt-cow"
		return []Finding{f}
	case m.Listen == "":
		f.Result, f.Seen = Warning, "they may ask, but migration.listen is empty: nobody hears them"
		f.Mend = "take listen out of [migration] of /etc/virt-cow/config.toml, then systemctl restart virt-cow"
		return []Finding{f}
	case h.daemon == nil:
		return skipped("the daemon does not answer")
	}
	_, port, err := peer.ParseListen(m.Listen)
	if err != nil {
		return skipped("%v", err) // the configuration's own finding
	}
	listened, known := h.listened(port)
	switch {
	case !known:
		return skipped("/proc/net/tcp can't be read: no telling whether anybody listens")
	case !listened:
		f.Result, f.Seen, f.Mend = Problem, "nobody listens at "+m.Listen, "systemctl restart virt-cow; journalctl -u virt-cow"
		return []Finding{f}
	}
	return well("%s may ask, at %s", some(m.Hosts), m.Listen)
}

// listened says whether there is a TCP socket that listens at a port.
func (h *Host) listened(port string) (listened, known bool) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return false, false
	}
	const listen = "0A"
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := h.read(file)
		if err != nil {
			continue
		}
		known = true
		for line := range strings.Lines(text) {
			f := strings.Fields(line) // number, local ADDRESS:PORT, remote, state
			if len(f) < 4 || f[3] != listen {
				continue
			}
			_, hex, _ := strings.Cut(f[1], ":")
			if p, err := strconv.ParseUint(hex, 16, 16); err == nil && p == n {
				return true, true
			}
		}
	}
	return false, known
}
