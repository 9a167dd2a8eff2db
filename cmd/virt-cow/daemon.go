package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"time"

	sddaemon "github.com/coreos/go-systemd/v22/daemon"

	"github.com/virt-cow/virt-cow/internal/config"
	"github.com/virt-cow/virt-cow/internal/daemon"
	"github.com/virt-cow/virt-cow/internal/inventory"
	"github.com/virt-cow/virt-cow/internal/launch"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/peer"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// DaemonCmd is the control daemon.
type DaemonCmd struct {
	Libvirt string `help:"Socket of libvirt." type:"path" key:"libvirt.socket" placeholder:"PATH"`
	LogDir  string `help:"Logs of the engines." type:"path" key:"log_dir" placeholder:"DIR"`
	Program string `help:"Program to run for the engines; this one by default." type:"path" env:"VIRT_COW_PROGRAM" placeholder:"PATH"`
}

// pluginsEnd is how long plugins may still be told at the end.
const pluginsEnd = 5 * time.Second

// Run runs until SIGTERM. Guests and their engines go on; the next daemon finds them.
func (c *DaemonCmd) Run(env *Env) error {
	if err := checkHost(env); err != nil {
		return err
	}
	if c.Program == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		c.Program = self
	}
	if _, err := os.Stat(c.Program); err != nil {
		return exitError{fmt.Errorf("--program: %w", err), exitUsage}
	}
	conf := env.Config
	for _, dir := range []string{conf.RunDir, conf.LogDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	launcher, err := launch.New(env.Context, launch.Config{
		Launcher: conf.Engine.Launcher, Program: c.Program, RunDir: conf.RunDir, LogDir: conf.LogDir,
	}, env.Log)
	if err != nil {
		return err
	}
	control, err := groupID(conf.Control.Group)
	if err != nil {
		return exitError{fmt.Errorf("[control] group: %w", err), exitUsage}
	}
	others, err := newPeers(conf, env.Log)
	if err != nil {
		return exitError{fmt.Errorf("[migration]: %w", err), exitUsage}
	}
	backups, err := backupConfig(conf)
	if err != nil {
		return exitError{fmt.Errorf("[backup]: %w", err), exitUsage}
	}
	plugins := plugin.New(plugin.Config{
		Dir: conf.Plugins.Dir, Timeout: time.Duration(conf.Plugins.Timeout), Version: version, Log: env.Log,
	})
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), pluginsEnd)
		defer cancel()
		_ = plugins.Close(ctx) // it logs what was not told
	}()
	return daemon.Run(env.Context, daemon.Config{
		RunDir: conf.RunDir, QEMURunDir: conf.Libvirt.RunDir, Version: version, Group: qemuGroup(conf.Engine.Group),
		ControlGroup: control, MetricsAddr: conf.Metrics.Listen,
		Dial:     func(ctx context.Context) (libvirtx.Conn, error) { return dialLibvirt(ctx, conf.Libvirt.Socket) },
		Launcher: launcher, Plugins: plugins, Inventory: inventoryConfig(conf, c.Program, env),
		Peers: others, FenceCommand: conf.Fence.Command, FenceTimeout: time.Duration(conf.Fence.Timeout), Reservations: conf.Engine.Reservations == "on", PeerTimeout: time.Duration(conf.Migration.Timeout),
		Backup: backups,
		Ready:  func() { _, _ = sddaemon.SdNotify(false, sddaemon.SdNotifyReady) }, // false without systemd
	}, env.Log)
}

func backupConfig(c config.Config) (daemon.BackupConfig, error) {
	b := daemon.BackupConfig{
		Folder: c.Backup.Folder, Pool: c.Backup.Pool, Provider: c.Backup.Provider, Hold: time.Duration(c.Backup.Hold),
		FreezeTimeout: time.Duration(c.Backup.FreezeTimeout), FrozenFor: time.Duration(c.Backup.FrozenFor),
	}
	var err error
	if c.Backup.Node != "" {
		_, b.Node, err = peer.ParseAddress(c.Backup.Node, peer.DefaultNodePort)
	}
	if err == nil {
		b.Hosts, err = peer.ParseHosts(c.Migration.Hosts)
	}
	if err == nil && c.Migration.Listen != "" {
		b.Pull.Files = c.Migration.Files()
		if b.Pull.Listen, _, err = peer.ParseListen(c.Migration.Listen); err == nil {
			b.Pull.From, b.Pull.To, err = c.Backup.Ports()
		}
	}
	return b, err
}

func inventoryConfig(c config.Config, program string, env *Env) inventory.Config {
	return inventory.Config{
		StateDir: c.StateDir, StoreDir: c.StoreDir, RunDir: c.RunDir, Program: program,
		ScanFolders: c.Scan.Folders, ScanDevices: c.Scan.Devices, Log: env.Log,
	}
}

// qemuGroups are the groups that distributions run QEMU as: Debian's, then Fedora's.
var qemuGroups = []string{"libvirt-qemu", "qemu"}

// qemuGroup finds QEMU's group if it is to be found. Where there is none of the known ones QEMU runs as root.
func qemuGroup(setting string) string {
	if setting != "auto" {
		return setting
	}
	for _, name := range qemuGroups {
		if _, err := user.LookupGroup(name); err == nil {
			return name
		}
	}
	return ""
}

// groupID is the number of a group given by name or number, 0 for "".
func groupID(group string) (int, error) {
	if group == "" {
		return 0, nil
	}
	g, err := user.LookupGroup(group)
	var unknown user.UnknownGroupError
	if errors.As(err, &unknown) {
		g, err = user.LookupGroupId(group)
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// checkHost refuses a configuration that this host can't follow, and logs what is not well with it.
func checkHost(env *Env) error {
	for _, p := range append(env.Settings.Problems(), env.Settings.CheckHost()...) {
		if !p.Warning {
			return exitError{fmt.Errorf("%s; see `virt-cow config check`", p), exitUsage}
		}
		env.Log.Warn().Msg(p.String())
	}
	return nil
}
