package config

import (
	"time"

	"github.com/virt-cow/virt-cow/internal/peer"
)

// Default is the configuration of an empty file.
func Default() Config {
	return Config{
		RunDir: "/run/virt-cow", StateDir: "/var/lib/virt-cow", LogDir: "/var/log/virt-cow", StoreDir: "/var/lib/virt-cow/stores",
		Libvirt: Libvirt{Socket: "/run/libvirt/libvirt-sock", RunDir: "/run/libvirt/qemu"},
		Engine:  Engine{Launcher: "auto", Group: "auto", Reservations: "off"},
		Hook:    Hook{Timeout: Duration(45 * time.Second)},
		Migration: Migration{
			Listen: ":" + peer.DefaultPort, Hosts: []string{}, CA: peer.DefaultCA, Cert: peer.DefaultCert, Key: peer.DefaultKey,
			Timeout: Duration(10 * time.Second),
		},
		Fence: Fence{Timeout: Duration(time.Minute)},
		Backup: Backup{
			Hold: Duration(5 * time.Second), FreezeTimeout: Duration(30 * time.Second), FrozenFor: Duration(10 * time.Second), PullPorts: "16600-16699",
		},
		ImageNode: ImageNode{
			Listen: ":" + peer.DefaultNodePort, Hosts: []string{}, Folders: []string{}, Devices: []string{"/dev/disk/by-id/*", "/dev/mapper/*"},
			Jobs: 2, Readers: 4, Patience: Duration(time.Hour),
		},
		Archive: Archive{PassphraseFile: "/etc/virt-cow/archive.passphrase", Cache: "/var/cache/virt-cow"},
		Scan:    Scan{Folders: []string{"/var/lib/virt-cow/stores"}, Devices: []string{"/dev/disk/by-id/*", "/dev/mapper/*"}},
		Plugins: Plugins{Dir: "/etc/virt-cow/plugins.d", Timeout: Duration(30 * time.Second)},
	}
}
