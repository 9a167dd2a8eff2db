// Package config reads virt-cow's configuration file, /etc/virt-cow/config.toml. What is not in it has its default;
// what it has that nobody knows is an error, with its line. An environment variable wins over the file, a flag over
// both.
package config

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/virt-cow/virt-cow/internal/peer"
)

// DefaultPath is where the file is, unless a flag or VIRT_COW_CONFIG says otherwise. It need not exist.
const DefaultPath = "/etc/virt-cow/config.toml"

// Config is the whole file. Paths are absolute. The tags are the key in the file and the environment variable.
type Config struct {
	RunDir   string `toml:"run_dir" env:"VIRT_COW_RUN_DIR"`     // sockets, locks, exception caches; on tmpfs
	StateDir string `toml:"state_dir" env:"VIRT_COW_STATE_DIR"` // the catalogue
	LogDir   string `toml:"log_dir" env:"VIRT_COW_LOG_DIR"`     // engines' logs, where systemd does not keep them
	StoreDir string `toml:"store_dir" env:"VIRT_COW_STORE_DIR"` // where stores are made that are given no place

	Libvirt   Libvirt   `toml:"libvirt"`
	Control   Control   `toml:"control"`
	Engine    Engine    `toml:"engine"`
	Hook      Hook      `toml:"hook"`
	Migration Migration `toml:"migration"`
	Fence     Fence     `toml:"fence"`
	Backup    Backup    `toml:"backup"`
	ImageNode ImageNode `toml:"image_node"`
	Archive   Archive   `toml:"archive"`
	Scan      Scan      `toml:"scan"`
	Plugins   Plugins   `toml:"plugins"`
	Metrics   Metrics   `toml:"metrics"`
}

// Libvirt says how libvirt is reached.
type Libvirt struct {
	Socket string `toml:"socket" env:"VIRT_COW_LIBVIRT"`
	RunDir string `toml:"run_dir" env:"VIRT_COW_LIBVIRT_RUN_DIR"` // of its QEMU driver: NAME.pid is a domain's process
}

// Control is the daemon's control socket.
type Control struct {
	Group string `toml:"group" env:"VIRT_COW_CONTROL_GROUP"` // that may use it besides root; "" for none
}

// Engine is how engine processes are run.
type Engine struct {
	Launcher string `toml:"launcher" env:"VIRT_COW_LAUNCHER"` // auto, systemd, child
	Group    string `toml:"group" env:"VIRT_COW_GROUP"`       // QEMU's, that gets the NBD sockets; auto, or "" for root's
	HostUUID string `toml:"host_uuid" env:"VIRT_COW_HOST_UUID"`

	Reservations string `toml:"reservations" env:"VIRT_COW_RESERVATIONS"` // on, off: SCSI persistent reservations
}

// Hook is the libvirt hook.
type Hook struct {
	Timeout Duration `toml:"timeout" env:"VIRT_COW_HOOK_TIMEOUT"` // that a starting guest waits for its volumes at most
}

// Migration is how the daemons of two hosts speak; see package peer. In the environment, hosts are separated by colons:
// IPv6 addresses can only be in the file.
type Migration struct {
	Listen  string   `toml:"listen" env:"VIRT_COW_MIGRATION_LISTEN"`   // :PORT or ADDRESS:PORT; "" for nowhere
	Address string   `toml:"address" env:"VIRT_COW_MIGRATION_ADDRESS"` // what others dial, HOST or HOST:PORT; "" for the host's name
	Hosts   []string `toml:"hosts" env:"VIRT_COW_MIGRATION_HOSTS"`     // that may ask: names, *.DOMAIN, IP addresses
	CA      string   `toml:"ca" env:"VIRT_COW_MIGRATION_CA"`
	Cert    string   `toml:"cert" env:"VIRT_COW_MIGRATION_CERT"`
	Key     string   `toml:"key" env:"VIRT_COW_MIGRATION_KEY"`
	Timeout Duration `toml:"timeout" env:"VIRT_COW_MIGRATION_TIMEOUT"` // of one question
}

// Files are those with the certificates.
func (m Migration) Files() peer.Files { return peer.Files{CA: m.CA, Cert: m.Cert, Key: m.Key} }

// Fence is a site's way to make sure that a host is dead.
type Fence struct {
	Command string   `toml:"command" env:"VIRT_COW_FENCE_COMMAND"` // run with the host's name, UUID and address; "" for none
	Timeout Duration `toml:"timeout" env:"VIRT_COW_FENCE_TIMEOUT"`
}

// Backup is how backups of this host's guests are begun.
type Backup struct {
	Node          string   `toml:"node" env:"VIRT_COW_BACKUP_NODE"`         // HOST or HOST:PORT of the image node; "" for none
	Folder        string   `toml:"folder" env:"VIRT_COW_BACKUP_FOLDER"`     // where snapshot stores are made; "" for store_dir
	Pool          string   `toml:"pool" env:"VIRT_COW_BACKUP_POOL"`         // libvirt's, instead of a folder
	Provider      string   `toml:"provider" env:"VIRT_COW_BACKUP_PROVIDER"` // plugin, instead of both
	Hold          Duration `toml:"hold" env:"VIRT_COW_BACKUP_HOLD"`         // that a cut may hold the guest's I/O
	FreezeTimeout Duration `toml:"freeze_timeout" env:"VIRT_COW_BACKUP_FREEZE_TIMEOUT"`
	FrozenFor     Duration `toml:"frozen_for" env:"VIRT_COW_BACKUP_FROZEN_FOR"` // that a guest may be frozen, else its grade is crash
	PullPorts     string   `toml:"pull_ports" env:"VIRT_COW_BACKUP_PULL_PORTS"` // FROM-TO; "" for none
}

// Ports are those that disks are exported at which the image node can't see; 0 where none are.
func (b Backup) Ports() (from, to int, err error) {
	if b.PullPorts == "" {
		return 0, 0, nil
	}
	first, last, is := strings.Cut(b.PullPorts, "-")
	if from, err = strconv.Atoi(first); err == nil {
		to, err = strconv.Atoi(last)
	}
	if !is || err != nil || from < 1 || to > 65535 || from > to {
		return 0, 0, fmt.Errorf("is %q, but must be two ports, the first and the last, such as %s", b.PullPorts, Default().Backup.PullPorts)
	}
	return from, to, nil
}

// ImageNode is the host that copies guests' disks into the archive. Its certificate is that of [migration].
type ImageNode struct {
	Listen   string   `toml:"listen" env:"VIRT_COW_NODE_LISTEN"`   // :PORT or ADDRESS:PORT
	Hosts    []string `toml:"hosts" env:"VIRT_COW_NODE_HOSTS"`     // that may ask, as in [migration]
	Folders  []string `toml:"folders" env:"VIRT_COW_NODE_FOLDERS"` // where disks are looked for
	Devices  []string `toml:"devices" env:"VIRT_COW_NODE_DEVICES"` // globs
	Jobs     int      `toml:"jobs" env:"VIRT_COW_NODE_JOBS"`       // copied at once
	Readers  int      `toml:"readers" env:"VIRT_COW_NODE_READERS"` // pieces of a job that are read at once
	Rate     string   `toml:"rate" env:"VIRT_COW_NODE_RATE"`       // bytes a second of all jobs, such as 200M; "" for no limit
	Patience Duration `toml:"patience" env:"VIRT_COW_NODE_PATIENCE"`
	Metrics  string   `toml:"metrics" env:"VIRT_COW_NODE_METRICS"` // where Prometheus may read, besides the image node's socket; "" for nowhere
}

// Archive is where backups are.
type Archive struct {
	URI             string `toml:"uri" env:"VIRT_COW_ARCHIVE"`
	PassphraseFile  string `toml:"passphrase_file" env:"VIRT_COW_ARCHIVE_PASSPHRASE_FILE"`
	CredentialsFile string `toml:"credentials_file" env:"VIRT_COW_ARCHIVE_CREDENTIALS_FILE"` // of S3
	Cache           string `toml:"cache" env:"VIRT_COW_ARCHIVE_CACHE"`                       // folder; "" for none
}

// Scan says where stores are looked for: folders, and globs of devices' stable names. In the environment they are
// separated by colons.
type Scan struct {
	Folders []string `toml:"folders" env:"VIRT_COW_SCAN_FOLDERS"`
	Devices []string `toml:"devices" env:"VIRT_COW_SCAN_DEVICES"`
}

// Plugins are the executables told of events.
type Plugins struct {
	Dir     string   `toml:"dir" env:"VIRT_COW_PLUGINS_DIR"`
	Timeout Duration `toml:"timeout" env:"VIRT_COW_PLUGINS_TIMEOUT"` // of one call
}

// Metrics is where Prometheus may read, besides the control socket.
type Metrics struct {
	Listen string `toml:"listen" env:"VIRT_COW_METRICS_LISTEN"` // such as 127.0.0.1:9788; "" for nowhere
}
