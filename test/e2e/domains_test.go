package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/test/lab"
	"github.com/virt-cow/virt-cow/test/lab/records"
)

// TestRenamed: a volume goes with its domain, whatever that is called.
func TestRenamed(t *testing.T) {
	b := newBed(t, lab0)
	store := b.clone(t, "c1")
	b.run(t, "attach", "g1", "--store", store)
	b.virsh(t, "domrename", "g1", "web1")
	b.await(t, "c1", "known by its domain's new name", func(s *api.VolumeStatus) bool { return off(s) && s.Domain == "web1" })
	b.virsh(t, "start", "web1")
	s := b.await(t, "c1", "attached", attached)
	if c := s.Engine.Client; s.Domain != "web1" || c == nil || c.Domain != "web1" || c.PIDFile != "/run/libvirt/qemu/web1.pid" {
		t.Errorf("domain %s, its engine lets in %+v", s.Domain, c)
	}
	b.virsh(t, "destroy", "web1")
	b.await(t, "c1", "off", off)
	b.assertClosed(t, store)
}

// TestEightDisks: eight volumes attached at once to one guest, which writes to all of them at once. The definition of
// the domain is removed meanwhile: it goes on as a transient one.
func TestEightDisks(t *testing.T) {
	b := newBed(t, lab.GuestConfig{Ports: 10})
	must(t, b.guest.Boot(t.Context()))
	var names, stores []string
	for i := range 8 {
		names = append(names, fmt.Sprintf("c%d", i))
		stores = append(stores, b.adopted(t, names[i]))
	}
	together(names, func(i int) {
		if _, err := b.vc.Run(t.Context(), "attach", "g1", names[i], "--no-hydrate"); err != nil {
			t.Error(err)
		}
	})
	wants := strings.Fields(b.wants(t, "g1"))
	targets := map[string]bool{}
	for _, name := range names {
		targets[b.await(t, name, "attached", attached).Target] = true
	}
	if len(wants) != len(names) || len(targets) != len(names) {
		t.Fatalf("g1 wants %v, at %v", wants, targets)
	}

	devs := make([]string, len(names))
	for i, store := range stores {
		devs[i] = b.disk(t, store)
	}
	b.virsh(t, "undefine", "g1")
	// One command: a guest that writes to eight disks has no time for more.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, err := b.guest.Run(ctx, `set -e; cd /tmp
for d in `+strings.Join(devs, " ")+`; do guest write $d 512 ${d#/dev/} >${d#/dev/}.out 2>&1 & done
for d in `+strings.Join(devs, " ")+`; do n=${d#/dev/}; until [ "$(cat $n.progress 2>/dev/null || echo 0)" -gt 30 ]; do sleep 0.5; done; done
for f in *.pid; do kill -TERM $(cat $f); done; wait; cat *.out >&2
for d in `+strings.Join(devs, " ")+`; do guest verify $d ${d#/dev/}; done`)
	must(t, err)
	t.Log(out)
	b.assertNoIOErrors(t)
	logs := make([]records.Log, len(names))
	for i, dev := range devs {
		must(t, json.Unmarshal([]byte(b.in(t, "cat /tmp/"+filepath.Base(dev)+".json")), &logs[i]))
	}
	for _, name := range names {
		b.await(t, name, "still attached", attached)
	}
	must(t, b.guest.Destroy(t.Context())) // and that is the end of the domain
	for i, name := range names {
		b.await(t, name, "gone", gone)
		b.verifyOutside(t, stores[i], logs[i])
	}
	b.assertMasterUnchanged(t)
}

// together runs f for each, all at once.
func together(names []string, f func(i int)) {
	var wg sync.WaitGroup
	for i := range names {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// diskFile is the XML of a disk for virsh attach-device. Of one without an export's name libvirt reports no I/O errors.
func (b *bed) diskFile(t *testing.T, socket, export, target string) string {
	t.Helper()
	return b.file(t, target+".xml", `<disk type='network' device='disk'><driver name='qemu' type='raw' error_policy='stop' rerror_policy='stop'/>
<source protocol='nbd' name='`+export+`'><host transport='unix' socket='`+socket+`'/></source><target dev='`+target+`' bus='virtio'/></disk>`)
}

// TestServedByHand: a volume that somebody had served, and plugged in with virsh, is seen in its domain and left
// alone, but its engine is looked after. Unplugged it stays served until that is ended too.
func TestServedByHand(t *testing.T) {
	b := newBed(t, lab0)
	must(t, b.guest.Boot(t.Context()))
	store := b.adopted(t, "c1")
	_, err := b.daemon().Start(t.Context(), "c1")
	must(t, err)
	xml := b.diskFile(t, "/run/virt-cow/c1.sock", "", "vdx")
	b.virsh(t, "attach-device", "g1", xml)
	pid := b.await(t, "c1", "seen in its domain", func(s *api.VolumeStatus) bool {
		return attached(s) && s.Domain == "g1" && s.Target == "vdx" && s.Held == api.HeldRequest
	}).PID
	if got := b.wants(t, "g1"); got != "" {
		t.Errorf("plugged in by hand, and yet in the metadata: %s", got)
	}
	b.in(t, "until [ -b /dev/vda ]; do sleep 0.2; done")
	b.startWriter(t, "/dev/vda")
	must(t, b.Kill(t.Context(), pid, 9))
	pid = b.await(t, "c1", "served by a new engine", attachedBut(pid)).PID
	b.awaitWrites(t, 50)
	b.assertNoIOErrors(t)
	log := b.stopWriter(t, "/dev/vda")
	b.refused(t, 1, "virsh detach-disk g1 vdx", "detach", "g1", "c1")

	for range 2 { // and a second time: the engine lets in whoever may have the socket again
		b.virsh(t, "detach-device", "g1", xml)
		b.await(t, "c1", "unplugged and still served", func(s *api.VolumeStatus) bool {
			return s != nil && s.State == api.VolumeServed && s.Domain == "" && s.PID == pid && s.Engine != nil && s.Engine.Client == nil
		})
		b.virsh(t, "attach-device", "g1", xml)
		b.await(t, "c1", "seen in its domain again", func(s *api.VolumeStatus) bool { return attached(s) && s.Domain == "g1" })
	}
	_, err = b.daemon().Stop(t.Context(), "c1") // the guest has it: it is not cut off
	must(t, err)
	b.await(t, "c1", "no longer held", func(s *api.VolumeStatus) bool { return attached(s) && s.Held == "" && s.PID == pid })
	b.virsh(t, "detach-device", "g1", xml)
	b.await(t, "c1", "gone", gone)
	b.verifyOutside(t, store, log)
}

// TestTransientDomainWithMetadata: a domain that was never defined has its disk in the metadata it is created with.
func TestTransientDomainWithMetadata(t *testing.T) {
	b := newBed(t, lab0)
	store := b.clone(t, "c1")
	b.want(t, "g1", libvirtx.Want{Volume: "c1", Store: store, Target: "vdb"})
	xml := b.file(t, "transient.xml", b.virsh(t, "dumpxml", "g1"))
	b.virsh(t, "undefine", "g1")
	b.await(t, "c1", "gone with its domain", gone)
	b.virsh(t, "create", xml)
	b.await(t, "c1", "attached", attached)
	must(t, b.guest.Destroy(t.Context()))
	b.await(t, "c1", "gone", gone)
	b.assertClosed(t, store)
}
