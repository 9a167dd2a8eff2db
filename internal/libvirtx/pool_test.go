package libvirtx

import (
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"
)

func TestVolumeXMLByPool(t *testing.T) {
	for pool, sparse := range map[string]bool{"dir": true, "fs": true, "netfs": true, "logical": false, "disk": false, "zfs": false} {
		text, err := volumeXML(pool, "a<b", 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		var v libvirtxml.StorageVolume
		if err := v.Unmarshal(text); err != nil || v.Name != "a<b" || v.Capacity.Value != 1<<30 {
			t.Fatal(v, err)
		}
		// LVM would make a snapshot of nothing of a volume that is smaller inside than out.
		if (v.Allocation.Value == 0) != sparse || !sparse && v.Allocation.Value != v.Capacity.Value {
			t.Errorf("%s: %s", pool, text)
		}
		if strings.Contains(text, `type="raw"`) != sparse {
			t.Errorf("%s: %s", pool, text)
		}
	}
}
