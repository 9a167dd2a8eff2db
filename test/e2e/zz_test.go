package e2e
import ("testing";"syscall";"time";"github.com/virt-cow/virt-cow/internal/api")
func TestZZ(t *testing.T) {
	b := newBed(t, lab0)
	store := b.clone(t, "c1")
	b.run(t, "attach", "g1", "--store", store, "--no-hydrate")
	must(t, b.guest.Boot(t.Context()))
	pid := b.await(t, "c1", "attached", attached).PID
	dev := b.disk(t, store)
	b.startWriter(t, dev)
	for i := range 12 {
	must(t, b.Libvirtd().Stop(syscall.SIGKILL))
	old := pid
	time.Sleep(time.Duration(i%4)*150*time.Millisecond)
	go b.Kill(t.Context(), old, syscall.SIGKILL)
	must(t, b.StartLibvirtd(t.Context()))
	pid = b.await(t, "c1", "served by a new engine", func(s *api.VolumeStatus) bool { return attached(s) && s.PID != old }).PID
	for range 40 {
		out, _ := b.Virsh(t.Context(), "domstate", "--reason", "g1")
		t.Log(time.Now().Format("05.000"), out)
		if out == "running (unpaused)" { break }
		time.Sleep(250*time.Millisecond)
	}
	b.awaitWrites(t, 20)
	}
}
