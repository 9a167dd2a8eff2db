package doctor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/hooks"
	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/config"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// host is a folder that looks like a host, and what runs on it. It is well unless a test makes it otherwise.
type host struct {
	t       *testing.T
	dir     string
	config  string
	status  *api.DaemonStatus // of the daemon that answers; nil for none
	volumes []api.VolumeInfo
	timex   unix.Timex
	dialErr error
}

func newHost(t *testing.T) *host {
	t.Helper()
	dir, err := os.MkdirTemp(memoryDir(), "vcd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &host{t: t, dir: dir, dialErr: errors.New("not in this test"), status: &api.DaemonStatus{
		Version: "v1", PID: 77, Libvirt: api.LibvirtStatus{Connected: true},
		Volumes: []api.VolumeStatus{{
			Volume: "a", Store: "/s/a", State: api.VolumeAttached, PID: 78,
			Engine: &api.EngineStatus{UUID: "ua", Volume: "a"},
		}},
	}}
	h.file("/etc/machine-id", "3d1219c7c4c5404aaa1f6d2a48adfda4\n")
	h.file("/etc/passwd", "root:x:0:0::/root:/bin/sh\nlibvirt-qemu:x:64055:64055::/:/bin/false\n")
	h.file("/etc/group", "root:x:0:\nlibvirt-qemu:x:64055:\nadmins:x:500:\ndisk:x:6:libvirt-qemu\n")
	h.file("/etc/libvirt/qemu.conf", "#user = \"x\"\nremember_owner = 0\n")
	h.file("/etc/libvirt/hooks/qemu.d/50-virt-cow", hooks.QEMU)
	h.mode("/etc/libvirt/hooks/qemu.d/50-virt-cow", 0o755)
	h.file("/proc/net/unix", "Num RefCount Protocol Flags Type St Inode Path\n")
	h.file("/proc/77/limits", "Max open files            1048576              1048576              files     \n")
	h.file("/proc/78/limits", "Max open files            1048576              1048576              files     \n"+
		"Max locked memory         unlimited            unlimited            bytes     \n")
	h.file("/proc/sys/kernel/hostname", "hv1.example.com\n")
	h.certificates(nil)
	h.file("/run/virt-cow/x", "")
	h.file("/var/lib/virt-cow/stores/a.cow", "")
	h.volumes = []api.VolumeInfo{{Name: "a", UUID: "ua", State: api.StateReady, Store: "/var/lib/virt-cow/stores/a.cow"}}
	return h
}

func memoryDir() string {
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		return "/dev/shm"
	}
	return ""
}

func (h *host) file(path, text string) {
	h.t.Helper()
	full := filepath.Join(h.dir, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(text), 0o644)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) mode(path string, m os.FileMode) {
	h.t.Helper()
	if err := os.Chmod(filepath.Join(h.dir, path), m); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) remove(path string) {
	h.t.Helper()
	if err := os.RemoveAll(filepath.Join(h.dir, path)); err != nil {
		h.t.Fatal(err)
	}
}

// listen makes a real socket that answers GET of each path with a value, and is in /proc/net/unix.
func (h *host) listen(path string, answers map[string]any) {
	h.t.Helper()
	l, err := net.Listen("unix", filepath.Join(h.dir, path))
	if err != nil {
		h.t.Fatal(err)
	}
	mux := http.NewServeMux()
	for p, v := range answers {
		mux.HandleFunc("GET "+p, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) })
	}
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	h.t.Cleanup(func() { s.Close() })
	h.mode(path, 0o600)
	old, err := os.ReadFile(filepath.Join(h.dir, "/proc/net/unix"))
	if err != nil {
		h.t.Fatal(err)
	}
	h.file("/proc/net/unix", string(old)+"0000000000000000: 00000002 00000000 00010000 0001 01 12345 "+path+"\n")
}

func (h *host) examine() []Finding {
	h.t.Helper()
	if h.status != nil {
		h.listen("/run/virt-cow/"+api.DaemonSocket, map[string]any{api.PathDaemonStatus: h.status, api.PathVolumes: api.VolumeList{Volumes: h.volumes}})
	}
	d := Host{
		Root: h.dir, Config: config.Parse([]byte(h.config), "/etc/virt-cow/config.toml"), Version: "v1",
		Dial: func(context.Context, string) (libvirtx.Conn, error) { return nil, h.dialErr },
		Adjtime: func(t *unix.Timex) (int, error) {
			*t = h.timex
			return 0, nil
		},
	}
	return d.Examine(h.t.Context())
}

// began has a libvirtd that was started that long ago.
func (h *host) began(ago time.Duration) {
	h.file("/run/libvirtd.pid", "500")
	h.file("/proc/stat", fmt.Sprintf("cpu 1 2\nbtime %d\n", time.Now().Add(-ago-time.Hour).Unix()))
	h.file("/proc/500/stat", "500 (lib) virt d) S 1 "+strings.Repeat("0 ", 17)+"360000 0\n")
}

func TestFindings(t *testing.T) {
	for _, c := range []struct {
		check  string
		name   string
		make   func(h *host)
		result Result
		says   string // in what is seen, why, or the command
	}{
		{"configuration", "well", func(*host) {}, OK, "config.toml"},
		{"configuration", "typo", func(h *host) { h.config = "run_dri = \"/x\"" }, Problem, "config.toml:1: run_dri is not known; did you mean run_dir"},
		{"configuration", "open metrics", func(h *host) { h.config = "[metrics]\nlisten = \":9788\"" }, Warning, "everybody"},
		{"run folder", "well", func(*host) {}, OK, "tmpfs"},
		{"run folder", "on disk", func(h *host) {
			h.remove("/run/virt-cow")
			if err := os.Symlink("/proc", filepath.Join(h.dir, "/run/virt-cow")); err != nil {
				t.Fatal(err)
			}
			h.status = nil
		}, Warning, "mount -t tmpfs tmpfs /run/virt-cow"},
		{"machine id", "well", func(*host) {}, OK, "3d1219"},
		{"machine id", "configured", func(h *host) {
			h.remove("/etc/machine-id")
			h.config = "[engine]\nhost_uuid = \"3d1219c7-c4c5-404a-aa1f-6d2a48adfda4\""
		}, OK, "host_uuid"},
		{"machine id", "missing", func(h *host) { h.remove("/etc/machine-id") }, Problem, "systemd-machine-id-setup"},
		{"machine id", "uninitialized", func(h *host) { h.file("/etc/machine-id", "uninitialized\n") }, Problem, "missing or empty"},
		{"machine id", "garbage", func(h *host) { h.file("/etc/machine-id", "3D12\n") }, Problem, "no machine id"},
		{"machine id", "of an image", func(h *host) { h.file("/etc/machine-id", strings.Repeat("1", 32)) }, Problem, "others may well have"},
		{"clock", "well", func(*host) {}, OK, "synchronised"},
		{"clock", "free", func(h *host) { h.timex.Status = unix.STA_UNSYNC }, Warning, "timedatectl set-ntp true"},
		{"io_uring", "well", func(*host) {}, OK, ""},
		{"io_uring", "off", func(h *host) { h.file("/proc/sys/kernel/io_uring_disabled", "2\n") }, Warning, "io_uring_disabled=0"},
		{"limits", "well", func(*host) {}, OK, ""},
		{"limits", "files", func(h *host) { h.file("/proc/78/limits", "Max open files            1024      4096     files\n") }, Warning, "LimitNOFILE"},
		{"limits", "memory", func(h *host) { h.file("/proc/78/limits", "Max locked memory         65536     65536    bytes\n") }, Warning, "LimitMEMLOCK"},
		{"limits", "aio", func(h *host) {
			h.file("/proc/sys/fs/aio-nr", "65530\n")
			h.file("/proc/sys/fs/aio-max-nr", "65536\n")
		}, Warning, "aio-max-nr"},
		{"room", "well", func(*host) {}, OK, "MiB free"},
		{"libvirt", "no socket", func(*host) {}, Problem, "systemctl enable --now libvirtd.socket"},
		{"libvirt", "the other one", func(h *host) { h.file("/run/libvirt/virtqemud-sock", "") }, Problem, `socket = "/run/libvirt/virtqemud-sock"`},
		{"libvirt", "not listening", func(h *host) { h.file("/run/libvirt/libvirt-sock", ""); h.dialErr = syscall.ECONNREFUSED }, Problem, "systemctl restart libvirtd.socket"},
		{"libvirt", "not for us", func(h *host) { h.file("/run/libvirt/libvirt-sock", ""); h.dialErr = os.ErrPermission }, Skipped, "sudo virt-cow doctor"},
		{"libvirt", "hangs", func(h *host) { h.file("/run/libvirt/libvirt-sock", ""); h.dialErr = context.DeadlineExceeded }, Problem, "does not answer"},
		{"daemon", "well", func(*host) {}, OK, "pid 77"},
		{"daemon", "down", func(h *host) { h.status = nil }, Problem, "systemctl enable --now virt-cow"},
		{"daemon", "old", func(h *host) { h.status.Version = "v0" }, Warning, "systemctl restart virt-cow"},
		{"daemon", "domain", func(h *host) { h.status.Domains = []api.DomainStatus{{Domain: "g", Error: "no room"}} }, Problem, "domain g: no room"},
		{"daemon", "volume", func(h *host) { h.status.Volumes[0].State, h.status.Volumes[0].Error = api.VolumeFailed, "gone" }, Problem, "volume a: gone"},
		{"hook", "well", func(h *host) { h.began(-time.Hour) }, OK, "50-virt-cow"},
		{"hook", "by another name", func(h *host) {
			h.remove("/etc/libvirt/hooks/qemu.d")
			h.file("/etc/libvirt/hooks/qemu", "#!/bin/sh\nexec virt-cow hook \"$@\"\n")
			h.mode("/etc/libvirt/hooks/qemu", 0o755)
		}, OK, "/etc/libvirt/hooks/qemu"},
		{"hook", "missing", func(h *host) { h.remove("/etc/libvirt/hooks/qemu.d") }, Problem, "virt-cow doctor --print-hook | install"},
		{"hook", "foreign only", func(h *host) { h.file("/etc/libvirt/hooks/qemu.d/50-virt-cow", "#!/bin/sh\n") }, Problem, "there is none"},
		{"hook", "not executable", func(h *host) { h.mode("/etc/libvirt/hooks/qemu.d/50-virt-cow", 0o644) }, Problem, "chmod 755"},
		{"hook", "old", func(h *host) { h.file("/etc/libvirt/hooks/qemu.d/50-virt-cow", hooks.QEMU+"\n# old\n") }, Warning, "not the one of this version"},
		{"hook", "not loaded", func(h *host) { h.began(time.Hour) }, Problem, "systemctl reload libvirtd"},
		{"control socket", "well", func(*host) {}, OK, "0600"},
		{"control socket", "group missing", func(h *host) { h.config = "[control]\ngroup = \"cows\"" }, Problem, "groupadd --system cows"},
		{"control socket", "group left out", func(h *host) { h.config = "[control]\ngroup = \"admins\"" }, Problem, "not 0660 and 500"},
		{"NBD sockets", "well", func(*host) {}, OK, "libvirt-qemu may use all"},
		{"NBD sockets", "root", func(h *host) { h.file("/etc/libvirt/qemu.conf", "user = \"root\"\n") }, OK, "QEMU is root"},
		{"NBD sockets", "closed", func(h *host) { h.listen("/run/virt-cow/a.sock", nil) }, Problem, "chgrp libvirt-qemu /run/virt-cow/a.sock"},
		{"NBD sockets", "image node's", func(h *host) { h.listen("/run/virt-cow/"+api.NodeSocket, nil) }, OK, "libvirt-qemu may use all"},
		{"NBD sockets", "folder", func(h *host) { h.mode("/run/virt-cow", 0o700) }, Problem, "chmod 755 /run/virt-cow"},
		{"AppArmor", "none", func(*host) {}, OK, "not in use"},
		{"AppArmor", "no rule", appArmored, Problem, "/etc/apparmor.d/local/abstractions/libvirt-qemu"},
		{"AppArmor", "security driver none", func(h *host) { appArmored(h); h.file("/etc/libvirt/qemu.conf", "security_driver = \"none\"\n") }, OK, "none"},
		{"AppArmor", "local rule", func(h *host) {
			appArmored(h)
			h.file("/etc/apparmor.d/local/abstractions/libvirt-qemu", "  /run/virt-cow/*.sock rw,\n")
		}, OK, "lets guests"},
		{"AppArmor", "rule commented out", func(h *host) {
			appArmored(h)
			h.file("/etc/apparmor.d/local/abstractions/libvirt-qemu", "#  /run/virt-cow/*.sock rw,\n")
		}, Problem, "no rule"},
		{"AppArmor", "package's rule, not included", func(h *host) { appArmored(h); packaged(h) }, Problem, "no rule"},
		{"AppArmor", "package's rule, included", func(h *host) {
			appArmored(h)
			packaged(h)
			h.file("/etc/apparmor.d/local/abstractions/libvirt-qemu", "  include if exists <abstractions/libvirt-qemu.d/virt-cow>\n")
		}, OK, "lets guests"},
		{"AppArmor", "package's rule, newer libvirt", func(h *host) {
			appArmored(h)
			packaged(h)
			h.file("/etc/apparmor.d/abstractions/libvirt-qemu", "  include if exists <abstractions/libvirt-qemu.d>\n")
		}, OK, "lets guests"},
		{"SELinux", "none", func(*host) {}, OK, "not in use"},
		{"SELinux", "permissive", func(h *host) { h.file("/sys/fs/selinux/enforce", "0") }, OK, "permissive"},
		{"SELinux", "no module", func(h *host) { h.file("/sys/fs/selinux/enforce", "1") }, Problem, "restorecon -R /usr/bin/virt-cow"},
		{"SELinux", "module", func(h *host) {
			h.file("/sys/fs/selinux/enforce", "1")
			h.file("/var/lib/selinux/targeted/active/modules/400/virt_cow/cil", "")
		}, OK, "with the module"},
		{"LVM", "none", func(*host) {}, OK, "not installed"},
		{"LVM", "all devices", func(h *host) { h.file("/etc/lvm/lvm.conf", "# global_filter = [ \"r|.*|\" ]\n") }, Warning, "use_devicesfile=1"},
		{"LVM", "rule", func(h *host) {
			h.file("/etc/lvm/lvm.conf", "")
			h.file("/etc/udev/rules.d/61-guests.rules", "ENV{DM_NAME}==\"guest-*\", ENV{VIRT_COW_GUEST}=\"1\"\n")
		}, Warning, "61-guests.rules"},
		{"LVM", "filter", func(h *host) {
			h.file("/etc/lvm/lvm.conf", "devices {\n global_filter = [ \"a|^/dev/sda|\", \"r|.*|\" ]\n}\n")
		}, OK, "filter"},
		{"LVM", "devices file by default", func(h *host) {
			h.file("/etc/lvm/lvm.conf", "devices {\n\t# This configuration option has an automatic default value.\n\t# use_devicesfile = 1\n}\n")
			h.file("/etc/lvm/devices/system.devices", "")
		}, OK, "system.devices"},
		{"LVM", "devices file that is switched off", func(h *host) {
			h.file("/etc/lvm/lvm.conf", "devices {\n\t# use_devicesfile = 1\n\tuse_devicesfile = 0\n}\n")
			h.file("/etc/lvm/devices/system.devices", "")
		}, Warning, "LVM looks at every block device"},
		{"LVM", "devices file", func(h *host) {
			h.file("/etc/lvm/lvmlocal.conf", "devices {\n use_devicesfile=1\n}\n")
			h.file("/etc/lvm/lvm.conf", "")
			h.file("/etc/lvm/devices/system.devices", "")
		}, OK, "system.devices"},
		{"engines", "well", func(*host) {}, OK, "1 run"},
		{"engines", "old", func(h *host) { h.status.Volumes[0].Old = true }, Warning, "virt-cow volume restart --old"},
		{"engines", "flush", func(h *host) { h.status.Volumes[0].Engine.Error = "input/output error" }, Problem, "FLUSH fails"},
		{"engines", "hydration", func(h *host) {
			h.status.Volumes[0].Engine.Hydration = &api.Hydration{State: api.HydrationFailed, Error: "bad sector"}
		}, Warning, "hydrate start a"},
		{"orphans", "well", func(*host) {}, OK, "nothing is left"},
		{"orphans", "socket", func(h *host) { h.file("/run/virt-cow/b.sock", ""); h.file("/run/virt-cow/b.ctl", "") }, Warning, "rm /run/virt-cow/b.sock /run/virt-cow/b.ctl"},
		{"orphans", "socket, no daemon", func(h *host) { h.file("/run/virt-cow/b.sock", ""); h.status = nil }, Warning, "systemctl start virt-cow"},
		{"orphans", "the daemon's affair", func(h *host) { h.file("/run/virt-cow/a.sock", "") }, OK, "nothing is left"},
		{"orphans", "stranger", func(h *host) {
			h.listen("/run/virt-cow/b.ctl", map[string]any{api.PathEngineStatus: api.EngineStatus{PID: 99, Store: "/s/b"}})
		}, Warning, "kill -TERM 99"},
		{"orphans", "spec", func(h *host) { h.file("/run/virt-cow/b.volume", "{}") }, Problem, "should run do not: b"},
		{"exception caches", "well", func(*host) {}, OK, "none"},
		{"exception caches", "used", func(h *host) {
			h.listen("/run/virt-cow/a.ctl", map[string]any{api.PathEngineStatus: api.EngineStatus{UUID: "ua"}})
			h.file("/run/virt-cow/cache/ua.cache", "")
		}, OK, "in use"},
		{"exception caches", "left", func(h *host) { h.file("/run/virt-cow/cache/ua.cache", "") }, Warning, "virt-cow hydrate start a"},
		{"exception caches", "unknown", func(h *host) { h.file("/run/virt-cow/cache/ub.cache", "") }, Warning, "virt-cow volume scan"},
		{"stores", "well", func(*host) {}, OK, "all 1 volumes"},
		{"stores", "missing", func(h *host) { h.remove("/var/lib/virt-cow/stores/a.cow") }, Problem, "a (/var/lib/virt-cow/stores/a.cow)"},
		{"stores", "unknown", func(h *host) { h.file("/var/lib/virt-cow/stores/b.cow", "") }, Warning, "b.cow"},
		{"stores", "error", func(h *host) { h.volumes[0].Error = "torn" }, Problem, "a: torn"},
		{"snapshots", "none", func(*host) {}, OK, "0, all of backups at work"},
		{"snapshots", "no daemon", func(h *host) { h.status = nil }, Skipped, "does not answer"},
		{"snapshots", "needed", func(h *host) {
			h.status.Snapshots = []api.SnapshotNote{{Volume: "a", State: api.SnapshotActive}}
		}, OK, "1, all of backups at work"},
		{"snapshots", "stale", func(h *host) {
			h.status.Snapshots = []api.SnapshotNote{{Volume: "a", Stale: true, Why: "its job has ended: done"}}
		}, Warning, "a snapshot of a is left: its job has ended"},
		{"snapshots", "broken", func(h *host) {
			h.status.Snapshots = []api.SnapshotNote{{Volume: "a", Job: "j1", State: api.SnapshotBroken}}
		}, Warning, "(job j1): it is broken"},
		{"snapshots", "missing", func(h *host) {
			h.status.Volumes[0].Store, h.status.Volumes[0].MissingSnapshots = "/s/a b", []string{"u1"}
		}, Problem, "virt-cow store break-snapshot '/s/a b' u1 #"},
		{"snapshots", "frozen", func(h *host) { h.status.Backups = []api.BackupStatus{{Domain: "g", MaybeFrozen: true}} }, Problem, "virsh domfsthaw g"},
		{"stores", "no daemon", func(h *host) { h.status = nil }, Skipped, "not running"},
		{"certificates", "well", func(*host) {}, OK, "is for hv1.example.com, until 20"},
		{"certificates", "none, and nobody may ask", func(h *host) { h.remove("/etc/pki") }, Skipped, "openssl req -x509 -newkey"},
		{"certificates", "none", func(h *host) { h.remove("/etc/pki"); h.config = mayAsk }, Problem, `subjectAltName=DNS:hv1.example.com\n`},
		{"certificates", "no key", func(h *host) { h.remove("/etc/pki/libvirt/private"); h.config = mayAsk }, Problem, "not there: /etc/pki/libvirt/private/serverkey.pem"},
		{"certificates", "elsewhere", func(h *host) { h.config = mayAsk + "cert = \"/etc/x/cert.pem\"" }, Problem, "install -D -m 644 servercert.pem /etc/x/cert.pem"},
		{"certificates", "garbage", func(h *host) { h.file("/etc/pki/libvirt/servercert.pem", "moo"); h.config = mayAsk }, Problem, "failed to find any PEM data"},
		{"certificates", "key for all", func(h *host) { h.mode("/etc/pki/libvirt/private/serverkey.pem", 0o644) }, Problem, "chmod o= /etc/pki/libvirt/private/serverkey.pem"},
		{"certificates", "other name", func(h *host) { h.file("/proc/sys/kernel/hostname", "hv1\n"); h.config = mayAsk }, Problem, `set address = "hv1.example.com"`},
		{"certificates", "configured name", func(h *host) {
			h.file("/proc/sys/kernel/hostname", "hv1\n")
			h.config = mayAsk + "address = \"HV1.example.com:7\""
		}, OK, "is for hv1.example.com"},
		{"certificates", "no host name", func(h *host) { h.remove("/proc/sys/kernel"); h.config = mayAsk }, Problem, "set address"},
		{"certificates", "an administrator's", func(h *host) {
			h.certificates(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
			h.config = mayAsk
		}, Problem, "is for a client"},
		{"certificates", "expired", func(h *host) {
			h.certificates(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) })
			h.config = mayAsk
		}, Problem, "has expired on"},
		{"certificates", "soon expired", func(h *host) {
			h.certificates(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(soon - time.Hour) })
			h.config = mayAsk
		}, Warning, "expires on 20"},
		{"certificates", "soon expired, for libvirt only", func(h *host) {
			h.certificates(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(soon - time.Hour) })
		}, OK, "until 20"},
		{"other hosts", "none", func(*host) {}, Skipped, `hosts = ["*.hv.example.com"]`},
		{"other hosts", "off", func(h *host) { h.config = mayAsk + "listen = \"\"" }, Warning, "migration.listen is empty"},
		{"other hosts", "not heard", func(h *host) { h.config = mayAsk; h.tcp("40CE", "0A") }, Problem, "nobody listens at :16589"},
		{"other hosts", "only connections", func(h *host) { h.config = mayAsk; h.tcp("40CD", "01") }, Problem, "nobody listens at :16589"},
		{"other hosts", "heard", func(h *host) { h.config = mayAsk; h.tcp("40CD", "0A") }, OK, "*.example.com may ask"},
		{"other hosts", "daemon is down", func(h *host) { h.config = mayAsk; h.status = nil }, Skipped, "does not answer"},
		{"PCI ports", "no libvirt", func(*host) {}, Skipped, "libvirt does not answer"},
	} {
		t.Run(c.check+"/"+c.name, func(t *testing.T) {
			h := newHost(t)
			h.config = "state_dir = \"/var/lib/virt-cow\""
			c.make(h)
			all := h.examine()
			if !slices.ContainsFunc(all, func(f Finding) bool {
				return f.Check == c.check && f.Result == c.result && strings.Contains(f.Seen+"\n"+f.Why+"\n"+f.Mend, c.says)
			}) {
				t.Errorf("want %s with %q, found:", c.result, c.says)
				for _, f := range all {
					if f.Check == c.check {
						t.Errorf("%+v", f)
					}
				}
			}
			for _, f := range all {
				if bad := f.Result == Warning || f.Result == Problem; f.Seen == "" || bad && (f.Why == "" || f.Mend == "") {
					t.Errorf("half a finding: %+v", f)
				}
			}
		})
	}
}

// mayAsk has live migration set up; more keys of [migration] may follow.
const mayAsk = "[migration]\nhosts = [\"*.example.com\"]\n"

// tcp has a socket at a port, in a state.
func (h *host) tcp(port, state string) {
	h.file("/proc/net/tcp6", "  sl  local_address                         remote_address                        st tx_queue rx_queue\n"+
		"   0: 00000000000000000000000000000000:"+port+" 00000000000000000000000000000000:0000 "+state+" 00000000:00000000\n")
}

// certificates makes them, as libvirt has them, for hv1.example.com unless a test makes them otherwise.
func (h *host) certificates(change func(*x509.Certificate)) {
	h.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(10 * soon),
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{"hv1.example.com"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
	}
	if change != nil {
		change(leaf)
	}
	for path, c := range map[string]*x509.Certificate{"/etc/pki/CA/cacert.pem": ca, "/etc/pki/libvirt/servercert.pem": leaf} {
		der, err := x509.CreateCertificate(rand.Reader, c, ca, key.Public(), key) // one key for both will do
		if err != nil {
			h.t.Fatal(err)
		}
		h.file(path, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		h.t.Fatal(err)
	}
	h.file("/etc/pki/libvirt/private/serverkey.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	h.mode("/etc/pki/libvirt/private/serverkey.pem", 0o600)
}

// TestMakeCertificates runs the commands that are printed, and looks at what they have made.
func TestMakeCertificates(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("there is no openssl")
	}
	for _, name := range []string{"hv1.example.com", "10.0.0.7"} {
		h := newHost(t)
		h.remove("/etc/pki")
		h.config = mayAsk + "address = \"" + name + "\"\n"
		for _, path := range []string{"ca", "cert", "key"} { // where the commands may write
			h.config += fmt.Sprintf("%s = %q\n", path, filepath.Join(h.dir, path+".pem"))
		}
		f := otherwise(h.examine(), "certificates")
		work := t.TempDir()
		sh := exec.Command("sh", "-euc", f.Mend)
		sh.Dir = work
		if out, err := sh.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s\n%s", err, f.Mend, out)
		}
		files := peer.Files{CA: filepath.Join(h.dir, "ca.pem"), Cert: filepath.Join(h.dir, "cert.pem"), Key: filepath.Join(h.dir, "key.pem")}
		c, err := peer.Read(files)
		if err != nil {
			t.Fatal(err)
		}
		if names, err := c.Check(time.Now()); err != nil || names.String() != name || time.Until(c.End()) < 20*soon {
			t.Error(names, err, c.End())
		}
		if info, err := os.Stat(files.Key); err != nil || info.Mode().Perm() != 0o600 {
			t.Error(info, err)
		}
		// libvirt wants both of these.
		if both := x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment; c.Leaf.KeyUsage != both || c.CAs[0].KeyUsage&x509.KeyUsageCertSign == 0 {
			t.Error(c.Leaf.KeyUsage, c.CAs[0].KeyUsage)
		}
	}
}

// otherwise is the first finding of a check that is not well.
func otherwise(all []Finding, check string) Finding {
	for _, f := range all {
		if f.Check == check && f.Result != OK {
			return f
		}
	}
	return Finding{}
}

func appArmored(h *host) {
	h.file("/sys/module/apparmor/parameters/enabled", "Y\n")
	h.file("/sys/kernel/security/apparmor/profiles", "libvirtd (enforce)\nvirt-aa-helper (enforce)\n")
	h.file("/etc/apparmor.d/abstractions/libvirt-qemu", "  include if exists <local/abstractions/libvirt-qemu>\n")
}

// packaged has the rule that the package ships.
func packaged(h *host) {
	rule, err := os.ReadFile("../../packaging/apparmor/virt-cow")
	if err != nil {
		h.t.Fatal(err)
	}
	h.file("/etc/apparmor.d/abstractions/libvirt-qemu.d/virt-cow", string(rule))
}

// TestWellHost makes sure that a host without libvirt is well but for that, so that no check cries wolf.
func TestWellHost(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range newHost(t).examine() {
		seen[f.Check] = true
		if f.Result == Problem && f.Check != "libvirt" || f.Result == Warning {
			t.Errorf("%+v", f)
		}
	}
	for _, name := range Names() {
		if !seen[name] {
			t.Errorf("%s says nothing", name)
		}
	}
}

func TestPorts(t *testing.T) {
	const port = `<controller type='pci' index='%d' model='pcie-root-port'><address type='pci' domain='0x0000' bus='0x00' slot='0x02'/></controller>`
	xml := func(machine string, roots, taken int) string {
		s := "<domain type='qemu'><os><type machine='" + machine + "'>hvm</type></os><devices><controller type='pci' index='0' model='pcie-root'/>"
		for i := range roots {
			s += fmt.Sprintf(port, i+1)
		}
		for i := range taken {
			s += fmt.Sprintf("<disk type='file'><target dev='vd%c' bus='virtio'/><address type='pci' bus='0x%02x' slot='0x00'/></disk>", 'a'+i, i+1)
		}
		return s + "<hostdev mode='subsystem' type='pci'><source><address type='pci' domain='0' bus='0x02' slot='0'/></source></hostdev></devices></domain>"
	}
	for _, c := range []struct {
		machine      string
		roots, taken int
	}{{"pc-q35-7.2", 3, 1}, {"pc-q35-7.2", 3, 3}, {"pc-q35-7.2", 0, 0}, {"pc-i440fx-7.2", 0, 0}} {
		p, err := portsOf(xml(c.machine, c.roots, c.taken))
		if err != nil || p.roots != c.roots || p.taken != c.taken || p.free() != c.roots-c.taken || p.q35 != strings.Contains(c.machine, "q35") {
			t.Errorf("%+v: %+v %v", c, p, err)
		}
	}
	if _, err := portsOf("<domain"); err == nil {
		t.Error("half a domain is taken for one")
	}
}

// TestQuote: names come from elsewhere, and what is printed is typed into a shell.
func TestQuote(t *testing.T) {
	for in, want := range map[string]string{"a-b.c/d": "a-b.c/d", "": "''", "a b": "'a b'", "a'b": `'a'\''b'`, "$(x)": "'$(x)'"} {
		if got := quote(in); got != want {
			t.Errorf("%q: %s", in, got)
		}
	}
}
