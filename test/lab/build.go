package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// moduleRoot is the folder with go.mod, looked for from the working folder upwards.
func moduleRoot() (string, error) {
	d, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("no go.mod above the working folder: run inside the source tree")
		}
	}
}

// Build makes a static binary of a package of this module, such as ./cmd/virt-cow, at path out. Flags are those of
// `go build`.
func Build(pkg, out string, flags ...string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	cmd := exec.Command("go", append(append([]string{"build", "-trimpath", "-o", out}, flags...), pkg)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w: %s", pkg, err, strings.TrimSpace(string(b)))
	}
	return nil
}

// BuildVirtCow makes the programs as they are installed: virt-cow at path out, and virt-cow-full beside it. Flags are those of
// `go build`, but for -tags.
func BuildVirtCow(out string, flags ...string) error {
	if err := Build("./cmd/virt-cow", out, append(flags, "-tags=virtcow_lean")...); err != nil {
		return err
	}
	return Build("./cmd/virt-cow", filepath.Join(filepath.Dir(out), "virt-cow-full"), flags...)
}

// buildGo makes a static binary of a package of this module.
func buildGo(pkg string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "virt-cow-lab-build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "out")
	if err := Build(pkg, out); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}
