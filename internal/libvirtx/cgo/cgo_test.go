//go:build libvirt_cgo

package cgo_test

import (
	"testing"

	"github.com/virt-cow/virt-cow/internal/libvirtx/cgo"
	"github.com/virt-cow/virt-cow/internal/libvirtx/libvirtxtest"
)

func TestMain(m *testing.M) { libvirtxtest.Main(m) }

func TestSuite(t *testing.T) { libvirtxtest.Suite(t, cgo.DialKeepalive) }
