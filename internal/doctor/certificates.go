package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/virt-cow/virt-cow/internal/peer"
)

const (
	whyMigrate = "no guest with volumes can be migrated live from or to this host, nor backed up by the image node"
	soon       = 30 * 24 * time.Hour
)

// certificates looks at those that this host shows others. Where no other host may ask, what is wrong with them is no
// problem yet, but for a key that others can read.
func certificates(_ context.Context, h *Host) []Finding {
	m := h.Config.Config.Migration
	bad := Skipped
	daemon := len(m.Hosts) > 0 || h.Config.Config.Backup.Node != ""
	if daemon || h.isImageNode() {
		bad = Problem
	}
	name, err := h.migrationHost()
	if err != nil {
		return []Finding{{
			Result: bad, Seen: "no telling what other hosts dial: " + err.Error(), Why: whyMigrate,
			Mend: `set address = "NAME.OF.THIS.HOST" in [migration] of /etc/virt-cow/config.toml, then systemctl restart virt-cow`,
		}}
	}
	var missing []string
	for _, path := range []string{m.CA, m.Cert, m.Key} {
		if _, err := os.Stat(h.path(path)); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, path)
		}
	}
	if missing != nil {
		return []Finding{{
			Result: bad, Seen: "not there: " + strings.Join(missing, ", "), Why: whyMigrate,
			Mend: makeCertificates(m.Files(), name, slices.Contains(missing, m.CA)),
		}}
	}
	var found []Finding
	if info, err := os.Stat(h.path(m.Key)); err == nil && info.Mode().Perm()&0o007 != 0 {
		found = append(found, Finding{
			Result: Problem, Seen: fmt.Sprintf("%s has mode %#o", m.Key, info.Mode().Perm()),
			Why: "who reads the key can be this host, for libvirt and for virt-cow", Mend: "chmod o= " + quote(m.Key),
		})
	}
	mend := makeCertificates(m.Files(), name, false)
	c, err := peer.Read(peer.Files{CA: h.path(m.CA), Cert: h.path(m.Cert), Key: h.path(m.Key)})
	if errors.Is(err, fs.ErrPermission) {
		return append(found, unread(err)...)
	} else if err != nil {
		return append(found, Finding{Result: bad, Seen: err.Error(), Why: whyMigrate, Mend: mend})
	}
	names, err := c.Check(time.Now())
	if err != nil {
		return append(found, Finding{Result: bad, Seen: err.Error(), Why: "other hosts refuse this one: " + whyMigrate, Mend: mend})
	}
	if !names.Match(name) && (daemon || !h.isImageNode()) { // hosts dial an image node by the name that they have for it
		found = append(found, Finding{
			Result: bad, Seen: fmt.Sprintf("%s is for %s, but other hosts dial %s", m.Cert, names, name),
			Why: "they refuse to speak to it under a name that its certificate does not have: " + whyMigrate,
			Mend: fmt.Sprintf("set address = %q in [migration] of /etc/virt-cow/config.toml, then systemctl restart virt-cow; or make another "+
				"certificate:\n%s", aName(names), mend),
		})
	}
	if end := c.End(); time.Until(end) < soon && bad == Problem {
		found = append(found, Finding{
			Result: Warning, Seen: fmt.Sprintf("%s, or the CA that signed it, expires on %s", m.Cert, end.Local().Format(time.DateOnly)),
			Why: "from then on other hosts refuse this one", Mend: mend,
		})
	}
	if found != nil {
		return found
	}
	return well("%s is for %s, until %s", m.Cert, names, c.End().Local().Format(time.DateOnly))
}

// migrationHost is under what name or address other hosts dial this one.
func (h *Host) migrationHost() (string, error) {
	m := h.Config.Config.Migration
	hostname, err := h.read("/proc/sys/kernel/hostname")
	if err != nil && m.Address == "" {
		return "", err
	}
	address, err := peer.OwnAddress(m.Address, m.Listen, hostname)
	if err != nil {
		return "", err
	}
	host, _, err := peer.ParseAddress(address, peer.DefaultPort)
	return host, err
}

// aName is one that can be dialled, if there is one.
func aName(n peer.Names) string {
	for _, name := range n.DNS {
		if !strings.HasPrefix(name, "*") {
			return name
		}
	}
	if len(n.IPs) > 0 {
		return n.IPs[0].String()
	}
	return "NAME.OF.THIS.HOST"
}

// makeCertificates are the commands that make a host's certificate, and a CA if there is none.
func makeCertificates(f peer.Files, host string, ca bool) string {
	kind := "DNS"
	if net.ParseIP(host) != nil {
		kind = "IP"
	}
	var lines []string
	if ca {
		lines = append(lines,
			"# Once for all hosts, where the CA's key is kept (on no hypervisor); a site that has a CA goes on below:",
			`openssl req -x509 -newkey rsa:3072 -nodes -sha256 -days 3650 -subj "/CN=hypervisors CA" `+
				"-addext keyUsage=critical,keyCertSign,cRLSign -keyout cakey.pem -out cacert.pem")
	}
	lines = append(lines,
		"# Where the CA's key is, for this host:",
		fmt.Sprintf(`printf 'subjectAltName=%s:%s\nextendedKeyUsage=serverAuth\nkeyUsage=digitalSignature,keyEncipherment\n`+
			`basicConstraints=critical,CA:FALSE\n' >host.ext`, kind, host),
		fmt.Sprintf(`openssl req -newkey rsa:3072 -nodes -subj "/CN=%s" -keyout serverkey.pem -out host.csr`, host),
		"openssl x509 -req -sha256 -days 825 -in host.csr -CA cacert.pem -CAkey cakey.pem -CAcreateserial -extfile host.ext -out servercert.pem",
		"# On this host, with the three files from there:")
	for _, file := range []struct{ mode, name, place string }{
		{"644", "cacert.pem", f.CA}, {"644", "servercert.pem", f.Cert}, {"600", "serverkey.pem", f.Key},
	} {
		lines = append(lines, fmt.Sprintf("install -D -m %s %s %s", file.mode, file.name, quote(filepath.Clean(file.place))))
	}
	return strings.Join(lines, "\n")
}
