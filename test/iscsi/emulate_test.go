package iscsi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/test/lab"
)

// programs are what the machine outside needs.
var programs = []string{"qemu-system-x86_64", "busybox", "ip", "dmsetup", "ldd"}

// modules of the kernel inside: the target, the initiator, the disk under the LUN, a network, a logical volume.
var modules = []string{
	"virtio_pci", "virtio_blk", "crc32c_generic", "veth",
	"target_core_mod", "target_core_iblock", "iscsi_target_mod", "iscsi_tcp", "sd_mod", "dm_mod",
}

const (
	diskSize = 32 << 20         // of the LUN, bytes
	ended    = 11 * time.Minute // bounds all of it, on a busy machine
)

// initScript prints on the second serial line what the test program prints, and leaves the first to the kernel.
const initScript = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /etc /var/run /var/lock /var/target/pr /etc/iscsi
/bin/busybox --install -s /bin
export PATH=/sbin:/bin HOME=/ ` + insideEnv + `=1
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp; mount -t tmpfs run /run
while read -r m; do insmod "$m" || echo "insmod $m failed"; done </modules
mount -t configfs config /sys/kernel/config
echo 1 >/proc/sys/kernel/panic
stty -F /dev/ttyS1 raw
cd /tmp
/bin/inside -test.v -test.timeout 10m -test.run '^TestISCSI$' </dev/null >/dev/ttyS1 2>&1
echo "ended with $?"
poweroff -f
`

func present(program string) error {
	if _, err := exec.LookPath(program); err != nil {
		return fmt.Errorf("%w: no %s: run scripts/deps.sh", lab.ErrMissing, program)
	}
	return nil
}

// image makes what the machine boots, in a folder: kernel and initramfs.
func image(t *testing.T, dir string) (kernel, initramfs string) {
	t.Helper()
	i, err := lab.NewImage(initScript)
	if err != nil {
		lab.SkipOrFail(t, err)
	}
	cache, err := lab.CacheDir()
	if err != nil {
		lab.SkipOrFail(t, err)
	}
	tools := filepath.Join(cache, "iscsi")
	if _, err := os.Stat(tools); err != nil {
		lab.SkipOrFail(t, fmt.Errorf("%w: no iSCSI initiator: %w: run scripts/deps.sh", lab.ErrMissing, err))
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "virt-cow")
	if err := lab.Build("./cmd/virt-cow", program, "-ldflags=-s -w", "-tags=virtcow_lean"); err != nil {
		t.Fatal(err)
	}
	err = errors.Join(
		i.Program("/bin/busybox", "busybox", ""),
		i.Program("/sbin/ip", "ip", ""),
		i.Program("/sbin/dmsetup", "dmsetup", ""),
		i.Program("/sbin/iscsistart", filepath.Join(tools, "iscsistart"), tools),
		i.Program("/bin/inside", self, ""),
		i.Program("/bin/virt-cow", program, ""),
		i.Modules(modules...),
		i.WriteInitramfs(filepath.Join(dir, "initramfs")),
	)
	if err != nil {
		t.Fatal(err)
	}
	return i.Kernel, filepath.Join(dir, "initramfs")
}

// emulate boots the machine with a file as the disk under its LUN, waits for its end, and returns what the test
// program inside printed.
func emulate(t *testing.T, disk string) string {
	t.Helper()
	dir := t.TempDir()
	kernel, initramfs := image(t, dir)
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, diskSize)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), ended)
	defer cancel()
	console := filepath.Join(dir, "console")
	// Target and initiators share its memory: where that is short, iSCSI waits for memory that only iSCSI could free.
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-smp", "2", "-m", "1536",
		"-nodefaults", "-display", "none", "-no-reboot", "-kernel", kernel, "-initrd", initramfs,
		"-append", "console=ttyS0 loglevel=5 panic=1 oops=panic net.ifnames=0",
		"-drive", "if=virtio,format=raw,cache=unsafe,discard=unmap,file="+disk,
		"-serial", "file:"+console, "-serial", "stdio")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var results, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &results, &stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		t.Errorf("the machine: %v\n%s", err, &stderr)
	}
	t.Logf("the machine ran for %s", time.Since(began).Round(time.Second))
	b, err := os.ReadFile(console)
	if text := string(b); err != nil || !strings.Contains(text, "ended with 0") {
		t.Errorf("its console (%v):\n%s", err, text[max(0, len(text)-20000):])
	}
	return strings.ReplaceAll(results.String(), "\r", "")
}
