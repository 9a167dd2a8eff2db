package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/test/lab"
)

// count has the guest count in a file of a disk's file system; each number is flushed before it is said to be.
const count = `mkdir -p /tmp/D && mount /dev/D /tmp/D && { i=0; while i=$((i+1)); do
echo $i >>/tmp/D/log && sync && echo $i >/tmp/D.new && mv /tmp/D.new /tmp/D.flushed || exit 1; done >/tmp/D.out 2>&1 & }`

// counted is the last number that the guest said is flushed.
func (b *bed) counted(t *testing.T, disk string) int {
	t.Helper()
	n, err := strconv.Atoi(b.in(t, "cat /tmp/"+disk+".flushed 2>/dev/null || echo 0"))
	must(t, err)
	return n
}

// TestHostReset: all that runs is killed at once and memory lost, then the host starts in its order: daemon, libvirtd,
// the guest by itself. It has its boot disk and the one attached later, with all that it had flushed.
func TestHostReset(t *testing.T) {
	b := newBedOn(t, lab.Config{Hook: program}, lab.GuestConfig{Devices: bootDisk("c1")})
	boot, hot := b.adopted(t, "c1"), b.adopted(t, "c2")
	must(t, b.guest.Boot(t.Context()))
	b.run(t, "attach", "g1", "c2", "--rate", "1M")
	b.virsh(t, "autostart", "g1")
	disks := map[string]string{"vda": boot, "vdb": hot}
	b.disk(t, hot)
	for disk := range disks {
		b.in(t, strings.ReplaceAll(count, "D", disk))
	}
	flushed := map[string]int{}
	for disk := range disks {
		eventually(t, "the guest counts", func() bool { flushed[disk] = b.counted(t, disk); return flushed[disk] > 20 })
	}
	must(t, b.Reset(t.Context()))

	_, err := b.vc.StartDaemonFirst(t.Context())
	must(t, err)
	must(t, b.StartLibvirtd(t.Context()))
	must(t, b.guest.WaitUp(t.Context()))
	b.await(t, "c1", "attached", attached)
	b.await(t, "c2", "attached", attached)
	b.disk(t, hot)
	for disk := range disks {
		out := b.in(t, strings.ReplaceAll("mkdir -p /tmp/D && mount /dev/D /tmp/D && tail -n1 /tmp/D/log && wc -l </tmp/D/log && umount /tmp/D && fsck.ext4 -fn /dev/D >/dev/null 2>&1", "D", disk))
		var last, lines int
		if _, err := fmt.Sscan(out, &last, &lines); err != nil || last < flushed[disk] || lines != last {
			t.Errorf("%s: %d was flushed before the reset, found %q: %v", disk, flushed[disk], out, err)
		}
	}
	must(t, b.guest.PowerOff(t.Context()))
	b.await(t, "c1", "closed", closed)
	b.await(t, "c2", "off", off)
	b.assertClosed(t, boot)
	b.assertClosed(t, hot)
	b.assertMasterUnchanged(t)
}
