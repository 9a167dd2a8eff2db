package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
)

// host is one of two that see a LUN, each through a block device of its own.
type host struct {
	b    *bench
	name string
	id   string
	lun  string
	s    *server
	told *server      // that is told what the guest does
	says atomic.Value // what: a string
}

// twoHosts makes a LUN with a clone on it that two hosts see.
func twoHosts(b *bench, chunk string) (a, c *host, want []byte) {
	b.truncate("lun", 16*mib)
	want = b.image("m.raw", 6*mib)
	make := func(name string) *host {
		if err := os.Mkdir(b.path(name), 0o700); err != nil {
			b.t.Fatal(err)
		}
		return &host{b: b, name: name, id: uuid.NewString(), lun: b.loop("lun", "--direct-io=on")}
	}
	a, c = make("a"), make("c")
	b.clone(a.lun, "m.raw", "--name", "v", "--chunk", chunk)
	return a, c, want
}

func (h *host) launch(flags ...string) {
	h.b.t.Helper()
	socket := h.b.path(h.name + "/v.sock")
	args := []string{"--run-dir", h.b.path(h.name), "serve", "--socket", socket, "--host-uuid", h.id, "--address", h.name + ":1"}
	h.s = h.b.launchArgs(h.lun, socket, append(append(args, flags...), h.lun)...)
}

// start has an engine of this host serve the volume.
func (h *host) start(flags ...string) {
	h.b.t.Helper()
	h.launch(flags...)
	eventually(h.b.t, h.name+" serves", func() bool {
		if h.s.ended() {
			h.b.t.Fatalf("%s: ended with %d\n%s", h.name, h.s.code, &h.s.log)
		}
		_, err := h.s.engine().Status(context.Background())
		return err == nil
	})
}

// is waits for a state of the hand-over.
func (h *host) is(state string) {
	h.b.t.Helper()
	eventually(h.b.t, h.name+" is "+state, func() bool { at := h.s.status().Handover; return at != nil && at.State == state })
}

// guest has the engine told what the guest does, as a daemon does it: again and again, since the engine forgets what it was told
// before its guest did something.
func (h *host) guest(state string) {
	h.says.Store(state)
	if h.told == h.s {
		return
	}
	s := h.s
	h.told = s
	go func() {
		ctx := context.Background()
		for !s.ended() {
			if st, err := s.engine().Status(ctx); err == nil && st.Handover != nil {
				// It may have ended meanwhile.
				_, _ = s.engine().Guest(ctx, api.GuestRequest{State: h.says.Load().(string), Turn: st.Handover.Turn})
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
}

// grantTo asks for a grant as another host's daemon would.
func (h *host) grantTo(o *host) string {
	h.b.t.Helper()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		h.b.t.Fatal(err)
	}
	g := api.Grant{ID: uuid.NewString(), Host: o.id, Boot: strings.TrimSpace(string(boot)), HostName: o.name, Address: o.name + ":1"}
	st, err := h.s.engine().Grant(h.b.t.Context(), api.GrantRequest{Grant: g})
	if err != nil {
		h.b.t.Fatal(err)
	}
	if len(st.Grants) != 1 || st.Grants[0].ID != g.ID || st.Grants[0].HostName != o.name || st.Cache != api.CacheOff {
		h.b.t.Fatalf("granted: %+v, cache %s", st.Grants, st.Cache)
	}
	return g.ID
}

// A volume goes from host to host while it is used, engines being killed on the way.
func TestHandOver(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ chunk, kill string }{
		"4K":                   {"4K", ""},
		"64K":                  {"64K", ""},
		"giver, open":          {"64K", "giver open"},
		"giver, sealed":        {"4K", "giver sealed"},
		"receiver, idle":       {"4K", "receiver idle"},
		"receiver, active":     {"64K", "receiver active"},
		"both, sealed":         {"4K", "both sealed"},
		"giver, after it gave": {"4K", "giver given"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			handOver(t, c.chunk, c.kill)
		})
	}
}

func handOver(t *testing.T, chunk, kill string) {
	b := newBench(t)
	from, to, want := twoHosts(b, chunk)
	from.start()
	dev := from.s.dial()
	put := func(h *host, seed uint64, off, n int) {
		t.Helper()
		w := noise(seed, n)
		write(t, dev, w, int64(off))
		copy(want[off:], w)
	}
	killed := func(h *host, at string, flags ...string) {
		t.Helper()
		if kill == at || strings.HasPrefix(kill, "both") && strings.TrimPrefix(kill, "both") == at[strings.Index(at, " "):] {
			h.s.kill()
			h.start(flags...)
			dev = h.s.dial()
		}
	}
	put(from, 1, 4096, 8192)
	id := from.grantTo(to)
	killed(from, "giver open")
	to.start("--incoming", id, "--hydrate")
	early := to.s.dial()
	holds(t, early, want, 0)
	put(from, 2, mib, 512) // clear when the receiver read it
	put(from, 3, 4*mib+512, 300*512)
	killed(to, "receiver idle", "--incoming", id)
	early = to.s.dial()
	dev = from.s.dial()
	from.guest(api.GuestStopped)
	from.is("sealed")
	killed(from, "giver sealed")
	killed(to, "receiver sealed", "--incoming", id)
	dev = to.s.dial()
	to.guest(api.GuestRuns)
	if kill == "receiver active" {
		from.s.kill() // so that it stays active
		from.s = nil
		gone := to.s.dial()
		go func() { _, _ = gone.WriteAt(noise(4, 4096), 0) }() // not acknowledged, and then made again
		eventually(t, "writes", func() bool { at := to.s.status().Handover; return at.State == "active" || at.State == "writer" })
		to.s.kill()
		to.start("--incoming", id)
		dev = to.s.dial()
		to.guest(api.GuestRuns)
		from.start()
	}
	if kill == "giver sealed" || kill == "both sealed" {
		from.guest(api.GuestStopped)
	}
	put(to, 4, 0, 4096)
	put(to, 5, mib+512, 512)
	to.is("owner")
	from.is("given")
	holds(t, dev, want, 0)
	late := from.s.dial()
	flush(t, late)
	if _, err := late.WriteAt(noise(6, 512), 0); !errors.Is(err, unix.EIO) {
		t.Errorf("a write where the volume no longer is: %v", err)
	}
	if kill == "giver given" {
		from.s.kill()
		from.launch()
		from.s.wait(exitLocked)
		if !strings.Contains(from.s.log.String(), "store is open on another host") {
			t.Errorf("says %s", &from.s.log)
		}
	} else {
		from.s.stop()
	}
	eventually(t, "cache on", func() bool { st := to.s.status(); return st.Cache == api.CacheOn && st.CacheSince > 0 })
	if st := to.s.status(); st.Epoch != 2 || len(st.Grants) != 0 || st.Owner.Host != to.id || st.Owner.Address != "c:1" || st.Error != "" {
		t.Errorf("%+v, owner %+v", st, st.Owner)
	}
	run := true
	if _, err := to.s.engine().Hydration(t.Context(), api.HydrationRequest{Run: &run}); err != nil {
		t.Fatal(err)
	}
	put(to, 7, 3*mib, 64<<10)
	to.s.hydrated()
	holds(t, dev, want, 0)
	dev.Close()
	early.Close()
	to.s.stop()
	b.run("store", "verify", from.lun).exits(0)
	// And back, by opening it there.
	from.start()
	dev = from.s.dial()
	holds(t, dev, want, 0)
	from.s.stop()
}

// An engine that is told to end while another host has the volume open: a stop waits until that is over; SIGTERM waits for a
// while, and leaves all as it is, for the next one to go on.
func TestStopWithGrant(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	a, c, want := twoHosts(b, "4K")
	a.start()
	id := a.grantTo(c)
	c.start("--incoming", id)
	a.s.signal(syscall.SIGTERM)
	dev := a.s.dial() // it serves meanwhile
	w := noise(1, 4096)
	write(t, dev, w, 8192)
	copy(want[8192:], w)
	a.s.wait(0)
	if !strings.Contains(a.s.log.String(), "leaves store and exception cache as they are") {
		t.Errorf("says nothing of what it left: %s", &a.s.log)
	}
	a.start()
	a.is("open")
	if err := a.s.engine().Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "says what it waits for", func() bool { return strings.Contains(a.s.status().Handover.Waits, "virt-cow host fenced c") })
	if err := c.s.engine().Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.s.wait(0)
	a.s.wait(0)
	c.start()
	holds(t, c.s.dial(), want, 0)
	c.s.stop()
}

// The control API's words for the cache switch, and what it refuses.
func TestCacheSwitch(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.image("m.raw", mib)
	b.clone("c.vcow", "m.raw")
	s := b.serve("c.vcow")
	for _, mode := range []string{api.CacheOff, api.CacheOff, api.CacheOn, api.CacheOff} {
		st, err := s.engine().Cache(t.Context(), api.CacheRequest{Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		if st.Cache != mode || time.Since(time.Unix(st.CacheSince, 0)) > time.Minute {
			t.Errorf("%s since %d", st.Cache, st.CacheSince)
		}
		b.run("store", "info", "c.vcow").exits(0).says("cache    " + mode)
	}
	if _, err := s.engine().Cache(t.Context(), api.CacheRequest{Mode: "half"}); err == nil || !strings.Contains(err.Error(), "want on or off") {
		t.Errorf("%v", err)
	}
	for _, wrong := range []api.GrantRequest{{}, {Grant: api.Grant{ID: uuid.NewString(), Host: "x", Boot: uuid.NewString()}}} {
		if _, err := s.engine().Grant(t.Context(), wrong); err == nil {
			t.Errorf("granted %+v", wrong)
		}
	}
	s.stop()
	b.run("serve", "--socket", b.path("n.sock"), "--incoming", "x", b.path("c.vcow")).exits(exitUsage).says("--incoming")
	b.run("serve", "--socket", b.path("n.sock"), "--incoming", uuid.NewString(), b.path("c.vcow")).exits(exitFailed).says("no such grant")
}
