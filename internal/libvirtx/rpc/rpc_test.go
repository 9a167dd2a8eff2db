package rpc_test

import (
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/libvirtx/libvirtxtest"
	"github.com/virt-cow/virt-cow/internal/libvirtx/rpc"
)

func TestMain(m *testing.M) { libvirtxtest.Main(m) }

func TestSuite(t *testing.T) { libvirtxtest.Suite(t, rpc.DialKeepalive) }

func TestDialSaysWhatIsWrong(t *testing.T) {
	for address, want := range map[string]string{
		"/nonexistent/libvirt-sock": "is libvirtd, or virtqemud, running?",
		"test:///default":           "libvirt_cgo",
	} {
		if _, err := rpc.DialKeepalive(t.Context(), address, libvirtx.DefaultKeepalive); err == nil || !strings.Contains(err.Error(), want) {
			t.Error(address, err)
		}
	}
}

func TestFrozenMove(t *testing.T) { libvirtxtest.FrozenMove(t, rpc.DialKeepalive) }
