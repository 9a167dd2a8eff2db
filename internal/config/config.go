// Package config reads virt-cow's configuration file, /etc/virt-cow/config.toml. What is not in it has its default;
// what it has that nobody knows is an error, with its line. A flag or an environment variable wins over the file.
package config

// DefaultPath is where the file is, unless a flag or VIRT_COW_CONFIG says otherwise. It need not exist.
const DefaultPath = "/etc/virt-cow/config.toml"

// Config is the whole file. Paths are absolute.
type Config struct {
	RunDir   string `toml:"run_dir"`   // sockets, locks, exception caches; on tmpfs
	StateDir string `toml:"state_dir"` // the catalogue
	LogDir   string `toml:"log_dir"`   // engines' logs, where systemd does not keep them
	StoreDir string `toml:"store_dir"` // where stores are made that are given no place

	Libvirt Libvirt `toml:"libvirt"`
	Control Control `toml:"control"`
	Engine  Engine  `toml:"engine"`
	Hook    Hook    `toml:"hook"`
	Scan    Scan    `toml:"scan"`
	Plugins Plugins `toml:"plugins"`
	Metrics Metrics `toml:"metrics"`
}

// Libvirt says how libvirt is reached.
type Libvirt struct {
	Socket string `toml:"socket"`
	RunDir string `toml:"run_dir"` // of its QEMU driver: NAME.pid is a domain's process
}

// Control is the daemon's control socket.
type Control struct {
	Group string `toml:"group"` // that may use it besides root; "" for none
}

// Engine is how engine processes are run.
type Engine struct {
	Launcher string `toml:"launcher"` // auto, systemd, child
	Group    string `toml:"group"`    // QEMU's, that gets the NBD sockets; auto, or "" for root's
	HostUUID string `toml:"host_uuid"`
}

// Hook is the libvirt hook.
type Hook struct {
	Timeout Duration `toml:"timeout"` // that a starting guest waits for its volumes at most
}

// Scan says where stores are looked for: folders, and globs of devices' stable names.
type Scan struct {
	Folders []string `toml:"folders"`
	Devices []string `toml:"devices"`
}

// Plugins are the executables told of events.
type Plugins struct {
	Dir     string   `toml:"dir"`
	Timeout Duration `toml:"timeout"` // of one call
}

// Metrics is where Prometheus may read, besides the control socket.
type Metrics struct {
	Listen string `toml:"listen"` // such as 127.0.0.1:9788; "" for nowhere
}
