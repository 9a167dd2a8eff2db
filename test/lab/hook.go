package lab

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// InstallHook gives the host this tree's hooks/qemu, which calls program: that is put on the PATH of all that runs on
// the host. A libvirtd that runs takes notice only after ReloadLibvirtd, unless it has had a hook before.
func (h *Host) InstallHook(program string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	script, err := os.ReadFile(filepath.Join(root, "hooks", "qemu"))
	if err != nil {
		return err
	}
	program, err = filepath.Abs(program)
	if err != nil {
		return err
	}
	link := filepath.Join(h.Dir, "bin", "virt-cow")
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(program, link); err != nil {
		return err
	}
	return h.WriteHook("50-virt-cow", string(script))
}

// WriteHook makes a script under /etc/libvirt/hooks/qemu.d. libvirtd takes notice of the first one only when it is
// started or reloaded.
func (h *Host) WriteHook(name, script string) error {
	dir := filepath.Join(h.Dir, "etc", "hooks", "qemu.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return WriteProgram(filepath.Join(dir, name), []byte(script))
}

// WriteProgram writes what somebody else is to execute. What this program starts meanwhile would have it open, and until it runs nobody
// could: ETXTBSY.
func WriteProgram(path string, text []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, text, 0o755)
}

// ReloadLibvirtd has libvirtd read its configuration again, a moment later.
func (h *Host) ReloadLibvirtd() error { return h.Libvirtd().Signal(syscall.SIGHUP) }
