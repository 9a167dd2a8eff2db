package main

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

const hostUUID = "4c4c4544-0042-3510-8056-b4c04f4a3132"

// leaving is a volume on its way to hv2, by a migration that can't go on.
func leaving() api.VolumeStatus {
	ago := time.Now().Add(-3 * time.Minute)
	return api.VolumeStatus{
		Volume: "c", Store: "/s/c", Domain: "g1", Target: "vdb", State: api.VolumeAttached, PID: 42,
		Migration: &api.MigrationStatus{ID: "m-17", Direction: "out", Peer: "hv2", Since: ago.Unix()},
		Engine: &api.EngineStatus{
			ControlVersion: 3, Cache: api.CacheOff, CacheSince: ago.Unix(), Epoch: 5,
			Owner:  &api.Owner{Host: "u1", HostName: "hv1", Instance: "i1", Address: "hv1:16589", Since: ago.Unix() - 7200},
			Grants: []api.Grant{{ID: "g-9", Host: hostUUID, HostName: "hv2", Address: "hv2:16589", Since: ago.Unix()}},
			Handover: &api.Handover{
				Role: api.RoleGiver, State: "sealed", Since: ago.UnixMilli(), Peer: "hv2", PeerHost: hostUUID, PeerState: "idle",
				Guest: api.GuestStopped, Held: 3, Waits: "hv2 does not answer",
			},
			Hydration: &api.Hydration{State: api.HydrationPaused, Total: 100, Done: 7},
		},
	}
}

const whatToDo = "hv2 does not answer; look at `virt-cow status` on hv2, or, if hv2 is dead and will never write again: `virt-cow host fenced hv2`"

func TestCache(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	s := b.stage(wellStatus())
	off := leaving()
	off.Engine.Grants, off.Engine.Handover, off.Migration = nil, nil, nil
	s.on("/v1/volumes/c/cache", answer(off))
	b.run("cache", "off", "c").exits(0).says("volume c: cache off, epoch 5; nothing is hydrated until it is on again\n")
	if got := strings.Join(s.called(), "; "); got != `POST /v1/volumes/c/cache {"mode":"off"}` {
		t.Error(got)
	}
	var got api.VolumeStatus
	b.run("--json", "cache", "off", "c").exits(0).json(&got)
	if got.Engine.Cache != api.CacheOff {
		t.Errorf("%+v", got)
	}
	s.called()
	b.run("cache", "on", "c").exits(exitDegraded).says("its cache is still off", "virt-cow cache status c")
	if got := strings.Join(s.called(), "; "); got != `POST /v1/volumes/c/cache {"mode":"on"}` {
		t.Error(got)
	}
	s.on("/v1/volumes/c/cache", refuse(http.StatusConflict, "host hv2 has a grant"))
	b.run("cache", "on", "c").exits(exitLocked).says("host hv2 has a grant")
	s.on("/v1/volumes/c/cache", refuse(http.StatusNotFound, "no volume c"))
	if out := b.run("cache", "on", "c").exits(exitFailed).says("no volume c"); strings.Contains(out.stderr, "older") {
		t.Error(out.stderr)
	}
	s.on("/v1/volumes/c/cache", http.NotFound)
	b.run("cache", "off", "c").exits(exitFailed).says("daemon is older than this program", "systemctl restart virt-cow")
	s.called()
	for _, verb := range []string{"off", "on", "status"} {
		b.run("cache", verb, "../c").exits(exitUsage).says("virt-cow volume list")
		b.run("cache", verb).exits(exitUsage)
	}
	if calls := s.called(); len(calls) > 0 {
		t.Error(calls)
	}
}

func TestCacheStatus(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	s := b.stage(wellStatus())
	show := func(v *api.VolumeStatus) {
		s.on("/v1/volumes/c", answer(api.VolumeInfo{Name: "c", Store: "/s/c", State: api.StateReady, Status: v}))
	}
	v := leaving()
	show(&v)
	for _, args := range [][]string{{"cache", "status", "c"}, {"volume", "show", "c"}} {
		code := 0
		if args[0] == "cache" {
			code = exitDegraded
		}
		b.run(args...).exits(code).says("use", "attached", "off since ", "(3m", "hv1 (u1), engine i1, answers at hv1:16589, since ", "epoch", "5\n",
			"g-9 to hv2 ("+hostUUID+"), answers at hv2:16589", "to hv2: sealed for 3m", "hv2 says idle, guest here: stopped, 3 requests held",
			"out to hv2 for 3m", "id m-17", "WAITS", whatToDo+"\n")
	}
	var got api.VolumeStatus
	b.run("cache", "status", "c", "--json").exits(exitDegraded).json(&got)
	if got.Engine.Handover.Held != 3 || len(got.Engine.Grants) != 1 {
		t.Errorf("%+v", got)
	}

	v.Migration, v.Engine.Handover, v.Engine.Grants, v.Engine.Cache, v.Engine.CacheSince = nil, nil, nil, api.CacheOn, 0
	show(&v)
	out := b.run("cache", "status", "c").exits(0).says("cache   on\n", "grants  none\n")
	for _, part := range []string{"hand-over", "migration", "WAITS"} {
		if strings.Contains(out.stdout, part) {
			t.Errorf("%s in %s", part, out.stdout)
		}
	}
	v.Engine.ControlVersion, v.Engine.Owner = 2, nil
	show(&v)
	b.run("cache", "status", "c").exits(0).says("virt-cow volume restart c")
	v.Engine = nil
	show(&v)
	b.run("cache", "status", "c").exits(0).says("process 42, does not answer")
	show(nil)
	b.run("cache", "status", "c").exits(0).says("nothing serves it here", "virt-cow store info /s/c")
	b.run("cache", "status", "c", "--json").exits(0).json(&got)
	if got.State != api.VolumeOff {
		t.Errorf("%+v", got)
	}
	b.run("cache", "status", "nothing").exits(exitFailed)
}

// What waits stands first, with what to do, in every view.
func TestStatusOfMigration(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	status := wellStatus()
	status.Volumes[0] = leaving()
	status.Volumes = append(status.Volumes,
		api.VolumeStatus{Volume: "d", State: api.VolumeIncoming, Migration: &api.MigrationStatus{
			ID: "m-18", Direction: "in", Peer: "hv$(x)", Since: time.Now().Unix(), Waits: "its grant",
		}},
		api.VolumeStatus{Volume: "e", State: api.VolumeElsewhere})
	b.stage(status)
	out := b.run("status").exits(exitDegraded).says("c: WAITS: "+whatToDo+"\n", "d: WAITS: its grant\n", "incoming", "elsewhere",
		"WAITS, cache off, migrating out, giver sealed, 3 requests held",
		"c: migration out to hv2 for 3m", "; hand-over to hv2: sealed for 3m", "; cache off, epoch 5, owner hv1, granted to hv2 for 3m",
		"the hand-over of 2 volumes waits")
	if strings.Contains(out.stdout+out.stderr, "$(x)") {
		t.Errorf("another host's words in a line to be typed: %s", out.stdout)
	}
	term := b.onTerminal(80, 24, b.command(t.Context(), program, "status", "--watch", "--interval", "100ms"))
	mark := term.shows(0, "c: WAITS: hv2 does not answer;")
	mark = term.shows(mark, "virt-cow host fenced hv2`")
	term.shows(mark, "d: WAITS")
	term.types("q")
	if err := term.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// refuse answers with an error, as the daemon does.
func refuse(code int, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(code)
		answer(api.Error{Message: message})(w, r)
	}
}
