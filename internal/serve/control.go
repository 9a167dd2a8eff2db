package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/engine"
	"github.com/virt-cow/virt-cow/internal/nbd"
)

var errInUse = fmt.Errorf("a running engine answers there: %w", blockdev.ErrLocked)

// control answers the engine's control API.
type control struct {
	volume  *engine.Volume
	server  *nbd.Server
	gate    *gatekeeper
	config  Config
	started time.Time
	stop    func()

	mu         sync.Mutex
	suspension *engine.Suspension
	ending     bool
}

// maxDeadline bounds a suspension: no guest waits longer for its disk without giving up on it.
const maxDeadline = time.Hour

// maxBody bounds a request to the control API, bytes.
const maxBody = 64 << 10

func newControl(v *engine.Volume, s *nbd.Server, g *gatekeeper, c Config, stop func()) *control {
	return &control{volume: v, server: s, gate: g, config: c, started: time.Now(), stop: stop}
}

func (k *control) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathEngineStatus, func(w http.ResponseWriter, _ *http.Request) { k.answer(w, nil) })
	mux.HandleFunc("POST "+api.PathEngineHydration, k.hydration)
	mux.HandleFunc("POST "+api.PathEngineSuspend, k.suspend)
	mux.HandleFunc("POST "+api.PathEngineResume, func(w http.ResponseWriter, _ *http.Request) { k.answer(w, k.resume()) })
	mux.HandleFunc("POST "+api.PathEngineClient, k.client)
	mux.HandleFunc("POST "+api.PathEngineCache, k.cache)
	mux.HandleFunc("POST "+api.PathEngineGrant, k.grant)
	mux.HandleFunc("POST "+api.PathEngineGrantEnd, k.endGrant)
	mux.HandleFunc("POST "+api.PathEngineGuest, k.guest)
	mux.HandleFunc("POST "+api.PathEngineDead, k.dead)
	mux.HandleFunc("POST "+api.PathEngineSnapshotAdd, k.addSnapshot)
	mux.HandleFunc("POST "+api.PathEngineSnapshotRemove, k.removeSnapshot)
	mux.HandleFunc("POST "+api.PathEngineSnapshotCursor, k.cursor)
	mux.HandleFunc("POST "+api.PathEngineCut, k.cut)
	mux.HandleFunc("POST "+api.PathEngineCutEnd, k.endCut)
	mux.HandleFunc("POST "+api.PathEngineStop, func(w http.ResponseWriter, _ *http.Request) {
		k.answer(w, nil)
		k.stop()
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hurry(w) // what the mux itself answers
		mux.ServeHTTP(w, r)
	})
}

// hurry bounds how long a client may take to read the answer.
func hurry(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(controlPatience))
}

// answer sends the status, or the error.
func (k *control) answer(w http.ResponseWriter, err error) {
	hurry(w)
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusConflict)
		e := api.Error{Message: err.Error()}
		if errors.Is(err, engine.ErrGranted) {
			e.Code = api.ErrorGranted
		}
		_ = json.NewEncoder(w).Encode(e)
		return
	}
	_ = json.NewEncoder(w).Encode(k.status())
}

func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	if err := d.Decode(into); err != nil {
		refuse(w, fmt.Errorf("request: %w", err))
		return false
	}
	return true
}

// refuse answers a request that makes no sense, whatever the volume is doing.
func refuse(w http.ResponseWriter, err error) {
	hurry(w)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_ = json.NewEncoder(w).Encode(api.Error{Message: err.Error()})
}

func (k *control) hydration(w http.ResponseWriter, r *http.Request) {
	var in api.HydrationRequest
	if !decode(w, r, &in) {
		return
	}
	if in.Rate != nil && *in.Rate < 0 {
		refuse(w, fmt.Errorf("hydrate %s: rate %d: want bytes a second, 0 for no limit", k.volume.Info().Name, *in.Rate))
		return
	}
	if in.Rate != nil {
		k.volume.SetHydrationRate(*in.Rate)
	}
	var err error
	if in.Run != nil && *in.Run {
		err = k.volume.StartHydration()
	} else if in.Run != nil {
		k.volume.PauseHydration()
	}
	k.answer(w, err)
}

func (k *control) suspend(w http.ResponseWriter, r *http.Request) {
	var in api.SuspendRequest
	if !decode(w, r, &in) {
		return
	}
	if in.DeadlineMillis <= 0 || in.DeadlineMillis > maxDeadline.Milliseconds() {
		refuse(w, fmt.Errorf("suspend %s: deadlineMillis %d: want 1 to %d", k.volume.Info().Name, in.DeadlineMillis, maxDeadline.Milliseconds()))
		return
	}
	// Not r.Context(): a client that goes away leaves the deadline to end it.
	s, err := k.volume.Suspend(context.Background(), time.Duration(in.DeadlineMillis)*time.Millisecond)
	if err == nil {
		err = k.keep(s)
	}
	k.answer(w, err)
}

// client changes who may connect from now on; who is connected stays.
func (k *control) client(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Client json.RawMessage `json:"client"` // nil: left out, which must not open the socket to everyone
	}
	if !decode(w, r, &in) {
		return
	}
	var client *api.Peer
	if err := json.Unmarshal(in.Client, &client); err != nil {
		refuse(w, fmt.Errorf("request: client: %w", err))
		return
	}
	if err := checkPeer(client); err != nil {
		refuse(w, err)
		return
	}
	k.gate.client.Store(client)
	k.answer(w, nil)
}

func (k *control) keep(s *engine.Suspension) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ending {
		return errors.Join(fmt.Errorf("suspend %s: it is being closed", k.volume.Info().Name), s.Resume())
	}
	k.suspension = s
	return nil
}

// end lets go what a suspension holds, for good: requests could not be drained at the end otherwise.
func (k *control) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ending = true
	if k.suspension != nil {
		_ = k.suspension.Resume() // or its deadline was first
		k.suspension = nil
	}
	k.volume.AbandonCut()
}

func (k *control) resume() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.suspension == nil {
		return fmt.Errorf("%s: is not suspended", k.volume.Info().Name)
	}
	err := k.suspension.Resume()
	k.suspension = nil
	return err
}

func (k *control) status() *api.EngineStatus {
	h, stats, hydration := k.volume.Header(), k.volume.Stats(), k.volume.Hydration()
	out := &api.EngineStatus{
		ControlVersion: api.ControlVersion, Version: k.config.Version, PID: os.Getpid(),
		Volume: h.Name, UUID: h.UUID.String(), Store: k.config.Store, Socket: k.config.Socket,
		Size: h.Size, ChunkSize: h.ChunkSize, Target: k.volume.Target(), Cache: k.volume.CacheMode().String(),
		Epoch: h.Epoch, ReadOnly: k.volume.Info().ReadOnly, Suspended: k.volume.Suspended(),
		Connections: k.server.Conns(), Started: k.started.Unix(), Client: k.gate.client.Load(),
		Hydration: &api.Hydration{
			State: string(hydration.State), Done: hydration.Done, Total: hydration.Total, Rate: hydration.Rate,
		},
		IO: api.IOCounters{
			Reads: stats.Reads, Writes: stats.Writes, Flushes: stats.Flushes, ReadBytes: stats.ReadBytes,
			WriteBytes: stats.WriteBytes, Copied: stats.Copied, Hydrated: stats.Hydrated,
			Commits: stats.Commits, Errors: stats.Errors, Refused: k.gate.refused.Load(),
		},
	}
	l := k.server.Latencies()
	out.IO.Latency = map[string]*api.Histogram{
		"read": {Counts: l.Read.Counts, Micros: l.Read.Micros}, "write": {Counts: l.Write.Counts, Micros: l.Write.Micros},
		"flush": {Counts: l.Flush.Counts, Micros: l.Flush.Micros},
	}
	if h.Master != nil {
		out.Master = h.Master.Address
	}
	if h.Origin != nil {
		out.Origin = h.Origin.Address
	}
	if err := k.volume.Err(); err != nil {
		out.Error, out.Lost = err.Error(), k.volume.Lost()
	}
	out.Stack = k.stack()
	k.handover(h, out)
	if hydration.Err != nil {
		out.Hydration.Error = hydration.Err.Error()
	}
	return out
}
