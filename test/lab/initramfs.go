package lab

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// guestModules are loaded at boot, after what they depend on. Those built into the kernel are passed over.
var guestModules = []string{"virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "efivarfs"}

// guestPrograms are copied from this machine with their libraries.
var guestPrograms = []string{"mke2fs", "e2fsck", "resize2fs"}

const guestInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /mnt /etc
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
ln -s /sbin/mke2fs /sbin/mkfs.ext4; ln -s /sbin/e2fsck /sbin/fsck.ext4
ln -s /proc/mounts /etc/mtab
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
efi=/sys/firmware/efi
[ -d $efi ] || sed -i /efivarfs/d /modules
while read -r m; do insmod "$m" || echo "insmod $m failed"; done </modules
[ ! -d $efi ] || mount -t efivarfs efivarfs $efi/efivars
[ ! -x /bin/start-agent ] || start-agent
echo GUEST-UP
while :; do /bin/guest agent /dev/ttyS1; sleep 1; done
`

var buildInitramfs = struct {
	sync.Mutex
	data map[bool][]byte
}{data: map[bool][]byte{}}

// initramfs makes the guest's file system, once a program: busybox, kernel modules, e2fsprogs and the lab's agent, and
// QEMU's too if it is wanted.
func initramfs(k kernel, qemuAgent bool) ([]byte, error) {
	buildInitramfs.Lock()
	defer buildInitramfs.Unlock()
	if b := buildInitramfs.data[qemuAgent]; b != nil {
		return b, nil
	}
	var a archive
	a.file("/init", 0o755, []byte(guestInit))
	agent, err := buildGo("./test/lab/guest")
	if err != nil {
		return nil, err
	}
	a.file("/bin/guest", 0o755, agent)
	if err := a.copy("/bin/busybox", "busybox"); err != nil {
		return nil, err
	}
	for _, p := range guestPrograms {
		if err := a.program("/sbin/"+p, mustLook(p), ""); err != nil {
			return nil, err
		}
	}
	if b, err := os.ReadFile("/etc/mke2fs.conf"); err == nil {
		a.file("/etc/mke2fs.conf", 0o644, b)
	}
	modules := guestModules
	if qemuAgent {
		if err := addQEMUAgent(&a); err != nil {
			return nil, err
		}
		modules = append(slices.Clone(modules), "virtio_console")
	}
	if err := addModules(&a, k, modules); err != nil {
		return nil, err
	}
	b := a.bytes()
	buildInitramfs.data[qemuAgent] = b
	return b, nil
}

// addModules adds modules and what they need, and a list of them in the order of loading: /modules.
func addModules(a *archive, k kernel, modules []string) error {
	files := map[string]string{}
	err := filepath.WalkDir(k.modules, func(p string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(p), ".ko"); ok && err == nil {
			files[strings.ReplaceAll(name, "-", "_")] = p
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("%w: no modules under %s", ErrMissing, k.modules)
	}
	var order []string
	done := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		p, ok := files[name]
		if done[name] || !ok {
			return nil
		}
		done[name] = true
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		deps, err := moduleDepends(b)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		for _, d := range deps {
			if err := add(d); err != nil {
				return err
			}
		}
		dst := "/mod/" + name + ".ko"
		a.file(dst, 0o644, b)
		order = append(order, dst+"\n")
		return nil
	}
	for _, m := range modules {
		if err := add(m); err != nil {
			return err
		}
	}
	a.file("/modules", 0o644, []byte(strings.Join(order, "")))
	return nil
}

// moduleDepends reads the depends= field of a kernel module's .modinfo section.
func moduleDepends(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no .modinfo section")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		if v, ok := strings.CutPrefix(field, "depends="); ok && v != "" {
			return strings.Split(strings.ReplaceAll(v, "-", "_"), ","), nil
		}
	}
	return nil, nil
}

func mustLook(program string) string {
	if p, err := exec.LookPath(program); err == nil {
		return p
	}
	return filepath.Join("/usr/sbin", program)
}
