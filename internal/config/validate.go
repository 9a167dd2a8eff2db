package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/local"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// Launchers are the values of engine.launcher.
var Launchers = []string{"auto", "systemd", "child"}

// Validate finds what is wrong with the values, whatever the host is like.
func (c Config) Validate() []Problem {
	var v validation
	v.path("run_dir", c.RunDir)
	v.path("state_dir", c.StateDir)
	v.path("log_dir", c.LogDir)
	v.path("store_dir", c.StoreDir)
	v.path("libvirt.socket", c.Libvirt.Socket)
	v.path("libvirt.run_dir", c.Libvirt.RunDir)
	v.path("plugins.dir", c.Plugins.Dir)
	if len(c.Libvirt.Socket) > local.MaxPath {
		v.add("libvirt.socket", "is %d bytes long, but a socket's path may have %d", len(c.Libvirt.Socket), local.MaxPath)
	}
	v.sockets(c.RunDir)
	v.group("control.group", c.Control.Group)
	v.group("engine.group", c.Engine.Group)
	if !slices.Contains(Launchers, c.Engine.Launcher) {
		v.add("engine.launcher", "is %q, but must be %s", c.Engine.Launcher, strings.Join(Launchers, ", "))
	}
	if c.Engine.HostUUID != "" {
		if id, err := uuid.Parse(c.Engine.HostUUID); err != nil || id == uuid.Nil {
			v.add("engine.host_uuid", "is %q, which is no UUID: print one with `uuidgen`, or leave it out", c.Engine.HostUUID)
		}
	}
	if r := c.Engine.Reservations; r != "on" && r != "off" {
		v.add("engine.reservations", "is %q, but must be on or off", r)
	}
	if c.Fence.Command != "" {
		v.path("fence.command", c.Fence.Command)
	}
	v.backup(c.Backup, c.Migration)
	v.imageNode(c.ImageNode)
	v.archive(c.Archive)
	for _, p := range c.Scan.Folders {
		v.path("scan.folders", p)
	}
	for _, g := range c.Scan.Devices {
		v.glob("scan.devices", g)
	}
	v.migration(c.Migration)
	v.listen("metrics.listen", c.Metrics.Listen)
	return v.problems
}

func (v *validation) migration(m Migration) {
	v.path("migration.ca", m.CA)
	v.path("migration.cert", m.Cert)
	v.path("migration.key", m.Key)
	if m.Listen != "" {
		if _, _, err := peer.ParseListen(m.Listen); err != nil {
			v.add("migration.listen", "%v", err)
		} else if len(m.Hosts) == 0 && m.Listen != Default().Migration.Listen {
			v.warn("migration.listen", "is %s, but migration.hosts is empty: nobody may ask, so no port is opened", m.Listen)
		}
	}
	if m.Address != "" {
		if _, _, err := peer.ParseAddress(m.Address, peer.DefaultPort); err != nil {
			v.add("migration.address", "%v", err)
		}
	}
	for _, h := range m.Hosts {
		if _, err := peer.ParseHost(h); err != nil {
			v.add("migration.hosts", "has %v", err)
		}
	}
}

func (v *validation) backup(b Backup, m Migration) {
	if b.Folder != "" {
		v.path("backup.folder", b.Folder)
	}
	if b.Pool != "" && b.Provider != "" {
		v.add("backup.pool", "is %q, and backup.provider is %q: give one of them", b.Pool, b.Provider)
	}
	if _, _, err := b.Ports(); err != nil {
		v.add("backup.pull_ports", "%v", err)
	}
	if b.Node == "" {
		return
	}
	if _, _, err := peer.ParseAddress(b.Node, peer.DefaultNodePort); err != nil {
		v.add("backup.node", "%v", err)
	}
	if m.Listen == "" {
		v.add("backup.node", "is %s, but migration.listen is empty: the image node must be able to ask this host", b.Node)
	}
}

// rate is as on the command line.
var rate = regexp.MustCompile(`^[0-9]{1,15}[KMGT]?$`)

func (v *validation) imageNode(n ImageNode) {
	if _, _, err := peer.ParseListen(n.Listen); err != nil {
		v.add("image_node.listen", "%v", err)
	}
	for _, h := range n.Hosts {
		if _, err := peer.ParseHost(h); err != nil {
			v.add("image_node.hosts", "has %v", err)
		}
	}
	for _, p := range n.Folders {
		v.path("image_node.folders", p)
	}
	for _, g := range n.Devices {
		v.glob("image_node.devices", g)
	}
	v.listen("image_node.metrics", n.Metrics)
	if n.Rate != "" && !rate.MatchString(n.Rate) {
		v.add("image_node.rate", "is %q, but must be bytes a second, such as 200M", n.Rate)
	}
}

// archivePlace is how an archive's place begins; what follows is looked at by who opens it.
var archivePlace = regexp.MustCompile(`^(/|file:///|kopia:///|s3://[^/?]+)`)

func (v *validation) archive(a Archive) {
	if a.URI != "" {
		if u, err := url.Parse(a.URI); err == nil && u.User != nil {
			v.add("archive.uri", "has a name or a password in it: they go into archive.credentials_file")
		} else if !archivePlace.MatchString(a.URI) {
			v.add("archive.uri", "is %q, but must be a folder's absolute path, s3://BUCKET/PREFIX?endpoint=HOST:PORT, or kopia:///FILE", a.URI)
		}
		v.path("archive.passphrase_file", a.PassphraseFile)
	}
	if a.CredentialsFile != "" {
		v.path("archive.credentials_file", a.CredentialsFile)
	}
	if a.Cache != "" {
		v.path("archive.cache", a.Cache)
	}
}

type validation struct{ problems []Problem }

func (v *validation) add(key, format string, args ...any) {
	v.problems = append(v.problems, Problem{Key: key, Message: fmt.Sprintf(format, args...)})
}

func (v *validation) warn(key, format string, args ...any) {
	v.problems = append(v.problems, Problem{Key: key, Warning: true, Message: fmt.Sprintf(format, args...)})
}

func (v *validation) path(key, path string) {
	switch {
	case path == "":
		v.add(key, "is empty, but must be an absolute path")
	case strings.ContainsFunc(path, unicode.IsControl):
		v.add(key, "is %q, which has control characters in it", path)
	case !filepath.IsAbs(path):
		v.add(key, "is %q, but must be an absolute path: begin it with /", path)
	case filepath.Clean(path) != path:
		v.add(key, "is %q: write it as %q", path, filepath.Clean(path))
	case path == "/":
		v.add(key, "is the root folder: give it one of its own")
	}
}

// sockets checks that the longest path in the run folder fits: RUN_DIR/NAME.sock.
func (v *validation) sockets(runDir string) {
	room := local.MaxPath - len(runDir) - len("/.sock")
	switch {
	case room < len("daemon"):
		v.add("run_dir", "is %d bytes long: the path of a socket in it would have more than %d", len(runDir), local.MaxPath)
	case room < cowfmt.MaxName:
		v.warn("run_dir", "is so long (%d bytes) that a volume's name may have %d instead of %d characters", len(runDir), room, cowfmt.MaxName)
	}
}

func (v *validation) group(key, group string) {
	if strings.ContainsFunc(group, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) || r == ':' }) {
		v.add(key, "is %q, which is no name of a group", group)
	}
}

func (v *validation) glob(key, glob string) {
	v.path(key, glob)
	if _, err := filepath.Match(glob, ""); err != nil {
		v.add(key, "has %q, which is no pattern: quote [ with \\", glob)
	}
	for _, bad := range []string{"/dev/sd", "/dev/dm-", "/dev/vd", "/dev/nvme"} {
		if strings.HasPrefix(glob, bad) {
			v.add(key, "has %q: such a name is another disk after the next boot; use /dev/disk/by-id/* or /dev/mapper/*", glob)
		}
	}
}

func (v *validation) listen(key, address string) {
	if address == "" {
		return
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		v.add(key, "is %q, but must be ADDRESS:PORT, such as 127.0.0.1:9788", address)
		return
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		v.add(key, "has port %q, but must have one from 1 to 65535", port)
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "localhost":
	case host == "" || err == nil && !ip.IsLoopback():
		v.warn(key, "is %s: everybody who reaches this host can read the metrics; they have names of domains and volumes in them", address)
	case err != nil:
		v.add(key, "has host %q, but must have an IP address or localhost", host)
	}
}
