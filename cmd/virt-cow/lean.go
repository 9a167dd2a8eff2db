//go:build virtcow_lean

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/alecthomas/kong"
)

// The program is built twice. An engine for each volume, and the hook at each start of a guest, would pay in memory and time for
// all that the archive draws in: so virt-cow leaves out the commands that need it, by this build tag, and has them run by
// virt-cow-full, which has all.
const full = "virt-cow-full"

// passOn becomes the full program where the command is left out in this one. It returns if it is not, or with why it can't.
func passOn(k *kong.Context) error {
	if _, here := k.Selected().Target.Addr().Interface().(interface{ Run(*Env) error }); here {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir := filepath.Dir(self)
	beside, installed := filepath.Join(dir, full), filepath.Join(dir, "../lib/virt-cow", full)
	for _, path := range []string{beside, installed} {
		if err := syscall.Exec(path, os.Args, os.Environ()); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("run %s: %w", path, err)
		}
	}
	return fmt.Errorf("%s needs the archive, and so the program %s, which is neither %s nor %s: install the package virt-cow anew, or what `make build` made",
		k.Selected().FullPath(), full, installed, beside)
}
