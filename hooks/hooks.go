// Package hooks holds the scripts that libvirt runs, so that the program can compare and print them.
package hooks

import _ "embed"

// QEMU is the hook for libvirt's QEMU driver.
//
//go:embed qemu
var QEMU string
