package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/peer"
)

const (
	whyBackup = "no guest of this host can be backed up"
	whyNode   = "no guest can be backed up by this host"

	nodeLog  = "journalctl -u virt-cow-image-node"
	askingTo = 8 * time.Second // another host, which may drop all that comes
)

// imageNode looks at backups from both sides: whether this host's image node answers it, and, where this host is one, whether it
// runs, has its archive, and is answered by its hosts.
func imageNode(ctx context.Context, h *Host) []Finding {
	var found []Finding
	c := h.Config.Config
	if c.Backup.Node != "" {
		found = append(found, h.askNode(ctx)...)
	}
	if h.isImageNode() {
		found = append(found, h.examineNode(ctx)...)
	}
	if found == nil {
		return skipped("no backups here: [backup] node names no image node, and this host has no [archive]")
	}
	return found
}

func (h *Host) isImageNode() bool {
	c := h.Config.Config
	return c.Archive.URI != "" || len(c.ImageNode.Hosts) > 0
}

// onlyImageNode says that this host is one and no hypervisor: no libvirt, and no daemon.
func (h *Host) onlyImageNode() bool {
	c := h.Config.Config
	return h.isImageNode() && h.daemon == nil && c.Backup.Node == "" && len(c.Migration.Hosts) == 0 && !h.exists(c.Libvirt.Socket)
}

func (h *Host) peers() *peer.Client {
	m := h.Config.Config.Migration
	files := peer.Files{CA: h.path(m.CA), Cert: h.path(m.Cert), Key: h.path(m.Key)}
	return &peer.Client{Identity: peer.NewIdentity(files, zerolog.Nop()), Timeout: askingTo}
}

// askNode asks the image node of this hypervisor.
func (h *Host) askNode(ctx context.Context) (found []Finding) {
	c := h.Config.Config
	if _, port, err := peer.ParseListen(c.Migration.Listen); err == nil && h.daemon != nil {
		if listened, known := h.listened(port); known && !listened {
			found = append(found, Finding{
				Result: Problem, Seen: "nobody listens at " + c.Migration.Listen + ", where the image node asks whether snapshots are unbroken",
				Why: whyBackup, Mend: "systemctl restart virt-cow; journalctl -u virt-cow",
			})
		}
	}
	host, address, err := peer.ParseAddress(c.Backup.Node, peer.DefaultNodePort)
	if err != nil {
		return append(found, skipped("%v", err)...) // the configuration's own finding
	}
	peers := h.peers()
	var s api.NodeStatus
	err = peers.Call(ctx, address, api.PathNodeStatus, struct{}{}, &s)
	var refused *api.RemoteError
	switch {
	case errors.As(err, &refused) && refused.Older:
		return append(found, well("the image node %s answers, of an older version", host)...)
	case errors.Is(err, peer.ErrRefused):
		name := "THIS.HOST"
		if names, err := peers.Identity.Names(); err == nil {
			name = aName(names)
		}
		return append(found, Finding{
			Result: Problem, Seen: "the image node: " + err.Error(), Why: whyBackup,
			Mend: fmt.Sprintf("on %s: add %q to hosts in [image_node] of /etc/virt-cow/config.toml, then systemctl restart virt-cow-image-node; %s", host, name, nodeLog),
		})
	case err != nil:
		return append(found, Finding{
			Result: Problem, Seen: "the image node: " + err.Error(), Why: whyBackup,
			Mend: fmt.Sprintf("on %s: systemctl enable --now virt-cow-image-node; %s; from here: nc -z %s", host, nodeLog, apart(address)),
		})
	case !s.Archive.Up && s.Archive.Error != "":
		return append(found, Finding{
			Result: Problem, Seen: "the image node " + host + " has no archive: " + s.Archive.Error, Why: whyBackup, Mend: "on " + host + ": virt-cow archive check",
		})
	}
	return append(found, well("%s answers, and has its archive", host)...)
}

// apart is HOST:PORT as nc wants it.
func apart(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host + " " + port
}

// examineNode looks at an image node on this host.
func (h *Host) examineNode(ctx context.Context) []Finding {
	found := h.nodeFiles()
	n := h.Config.Config.ImageNode
	switch {
	case len(n.Hosts) == 0:
		found = append(found, Finding{
			Result: Warning, Seen: "no host may ask the image node: image_node.hosts is empty", Why: whyNode,
			Mend: `add hosts = ["*.hv.example.com"], the names in the hosts' certificates, to [image_node] of /etc/virt-cow/config.toml, then systemctl restart virt-cow-image-node`,
		})
	default:
		if _, port, err := peer.ParseListen(n.Listen); err == nil {
			if listened, known := h.listened(port); known && !listened {
				found = append(found, Finding{
					Result: Problem, Seen: "nobody listens at " + n.Listen, Why: whyNode, Mend: "systemctl enable --now virt-cow-image-node; " + nodeLog,
				})
			}
		}
	}
	s, err := api.NewNode(h.path(h.Config.Config.RunDir)).Status(ctx)
	if err != nil {
		return append(found, Finding{Result: Problem, Seen: err.Error(), Why: whyNode, Mend: "systemctl enable --now virt-cow-image-node; " + nodeLog})
	}
	found = append(found, nodeFindings(s)...)
	found = append(found, h.askHosts(ctx, h.Config.Config.ImageNode.Hosts)...)
	if found != nil {
		return found
	}
	maintained := "maintained from here"
	if s.Archive.NotOurs {
		maintained = "maintained by another host"
	}
	return well("it runs, with %d jobs at work; its archive is there, %s", len(s.Running), maintained)
}

// nodeFiles looks at what an image node needs on this host.
func (h *Host) nodeFiles() (found []Finding) {
	c := h.Config.Config
	if file := c.Archive.PassphraseFile; c.Archive.URI != "" {
		switch info, err := os.Stat(h.path(file)); {
		case errors.Is(err, fs.ErrNotExist):
			found = append(found, Finding{
				Result: Problem, Seen: "there is no " + file, Why: "it has the archive's passphrase: " + whyNode,
				Mend: "put a copy of it there that was kept elsewhere; for a new archive: (umask 077; openssl rand -base64 24 >" + quote(file) + ") && virt-cow archive create",
			})
		case err == nil && info.Mode().Perm()&0o077 != 0:
			found = append(found, Finding{
				Result: Problem, Seen: fmt.Sprintf("%s has mode %#o", file, info.Mode().Perm()), Why: "who reads it can read all backups: it is not used like that",
				Mend: "chmod 600 " + quote(file),
			})
		}
	}
	var missing []string
	for _, folder := range c.ImageNode.Folders {
		if !h.exists(folder) {
			missing = append(missing, folder)
		}
	}
	if missing != nil {
		found = append(found, Finding{
			Result: Warning, Seen: "folders of guests' disks that are not there: " + some(missing), Why: "disks in them are read over the network, or not at all",
			Mend: "mount them, or take them out of folders in [image_node] of /etc/virt-cow/config.toml",
		})
	}
	disks := 0
	for _, glob := range c.ImageNode.Devices {
		disks += len(h.glob(glob))
	}
	if disks == 0 && len(missing) == len(c.ImageNode.Folders) {
		found = append(found, Finding{
			Result: Warning, Seen: "no disk is where image_node.devices and image_node.folders look for them", Why: "all that is backed up comes over the network",
			Mend: "multipath -ll; iscsiadm -m session; or change devices and folders in [image_node] of /etc/virt-cow/config.toml",
		})
	}
	return found
}

// nodeFindings is what an image node that answers says of itself.
func nodeFindings(s *api.NodeStatus) (found []Finding) {
	if a := s.Archive; !a.Up && a.Error != "" {
		found = append(found, Finding{Result: Problem, Seen: "the archive: " + a.Error, Why: whyNode, Mend: "virt-cow archive check"})
	} else if a.MaintenanceError != "" {
		found = append(found, Finding{
			Result: Warning, Seen: "the archive's maintenance fails: " + a.MaintenanceError, Why: "what no backup has any more still takes room",
			Mend: "virt-cow archive maintain",
		})
	}
	for i := range s.Running {
		if j := &s.Running[i]; j.Waits != "" {
			found = append(found, Finding{
				Result: Warning, Seen: fmt.Sprintf("job %s of %s waits: %s", j.Job, j.Domain, j.Waits), Why: "it fails if that lasts for longer than image_node.patience",
				Mend: "virt-cow backup watch " + j.Job,
			})
		}
	}
	for i := range s.Backups {
		if b := &s.Backups[i]; b.State == api.JobFailed {
			found = append(found, Finding{
				Result: Warning, Seen: "the last backup of " + b.Domain + " failed: " + b.Error, Why: "its newest backup is older than it should be",
				Mend: "on its host: systemctl start virt-cow-backup@" + quote(b.Domain),
			})
		}
	}
	return found
}

// askHosts asks those that are named one by one whether they take this host for their image node.
func (h *Host) askHosts(ctx context.Context, hosts []string) (found []Finding) {
	peers := h.peers()
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, host := range hosts {
		name, address, err := peer.ParseAddress(host, peer.DefaultPort)
		if err != nil { // *.example.com
			continue
		}
		asking.Go(func() {
			err := peers.Call(ctx, address, api.PathPeerAttest, api.PeerSnapshot{}, nil)
			var answer *api.RemoteError
			if errors.As(err, &answer) && (answer.Code == 400 || answer.Older) { // it has read the question, which is none
				return
			}
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			found = append(found, Finding{
				Result: Warning, Seen: "the image node asks " + name + ": " + err.Error(), Why: "backups of its guests do not complete without its word",
				Mend: "on " + name + ": virt-cow doctor; node in [backup] of /etc/virt-cow/config.toml must be a name in this host's certificate",
			})
		})
	}
	asking.Wait()
	return found
}
