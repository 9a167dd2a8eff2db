package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// ErrMissing says that this machine lacks something the lab needs.
var ErrMissing = errors.New("the lab can't run here")

// RequireEnv, when set to 1, makes a test that can't run here fail instead of skip.
const RequireEnv = "VIRT_COW_REQUIRE_LAB"

var programs = []string{"libvirtd", "virsh", "qemu-system-x86_64", "busybox", "mke2fs", "e2fsck", "ip", "nsenter", "ldd"}

// Check says what is missing here for hosts of a plain Config, wrapping ErrMissing.
func Check() error { return check(rootOf(Config{})) }

func check(root string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: namespaces and mounts need root", ErrMissing)
	}
	programs := programs
	if root != "" {
		if err := checkRoot(root); err != nil {
			return err
		}
		programs = slices.DeleteFunc(slices.Clone(programs), func(p string) bool { return slices.Contains(hypervisor, p) })
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%w: no %s: run scripts/deps.sh", ErrMissing, p)
		}
	}
	_, err := findKernel()
	return err
}

// For makes a host for a test and closes it with the test. The test is skipped, saying why, where the lab
// can't run, or fails if RequireEnv is set.
func For(t testing.TB, c Config) *Host {
	t.Helper()
	if err := check(rootOf(c)); err != nil {
		SkipOrFail(t, err)
	}
	h, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// SkipOrFail ends a test that can't run here: it is skipped, saying why, or fails if RequireEnv is set.
func SkipOrFail(t testing.TB, err error) {
	t.Helper()
	if os.Getenv(RequireEnv) == "1" {
		t.Fatal(err)
	}
	t.Skip("SKIPPED: ", err)
}

// CacheDir is where the unpacked kernel is kept between runs.
func CacheDir() (string, error) {
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrMissing, err)
	}
	return filepath.Join(d, "virt-cow"), nil
}

// kernel is an unpacked kernel package.
type kernel struct {
	image   string // vmlinuz
	modules string // folder
}

func findKernel() (kernel, error) {
	cache, err := CacheDir()
	if err != nil {
		return kernel{}, err
	}
	root := filepath.Join(cache, "kernel")
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(images) == 0 {
		return kernel{}, fmt.Errorf("%w: no kernel for the guest under %s: run scripts/deps.sh", ErrMissing, root)
	}
	image := images[len(images)-1]
	version := filepath.Base(image)[len("vmlinuz-"):]
	return kernel{image: image, modules: filepath.Join(root, "lib", "modules", version)}, nil
}
