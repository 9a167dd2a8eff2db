package serve

import (
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

var onErrors = map[string]uint8{
	"": cowfmt.OnErrorBreakSnapshot, api.BreakSnapshot: cowfmt.OnErrorBreakSnapshot, api.BreakGuestWrite: cowfmt.OnErrorBreakGuestWrite,
}

func (k *control) addSnapshot(w http.ResponseWriter, r *http.Request) {
	var in api.SnapshotAddRequest
	if !decode(w, r, &in) {
		return
	}
	e, err := stackEntry(&in)
	if err != nil {
		refuse(w, fmt.Errorf("snapshot of %s: %w", k.volume.Info().Name, err))
		return
	}
	ctx, cancel := patient()
	defer cancel()
	k.answer(w, k.volume.AddSnapshot(ctx, e))
}

func stackEntry(in *api.SnapshotAddRequest) (e cowfmt.StackEntry, err error) {
	if err := parseUUIDs([]string{in.UUID, in.Cut}, &e.UUID, &e.CutID); err != nil {
		return e, fmt.Errorf("uuid and cut: %w", err)
	}
	onError, known := onErrors[in.OnError]
	switch {
	case e.UUID == uuid.Nil, e.CutID == uuid.Nil:
		return e, fmt.Errorf("uuid %q, cut %q: want both", in.UUID, in.Cut)
	case !known:
		return e, fmt.Errorf("onError %q: want %s or %s", in.OnError, api.BreakSnapshot, api.BreakGuestWrite)
	case in.TimeoutMillis < 0 || in.TimeoutMillis > maxSaveTimeout.Milliseconds():
		return e, fmt.Errorf("timeoutMillis %d: want 1 to %d, or 0 for the default", in.TimeoutMillis, maxSaveTimeout.Milliseconds())
	case !filepath.IsAbs(in.Store):
		return e, fmt.Errorf("store %q: not an absolute path", in.Store)
	}
	e.OnError, e.Timeout = onError, uint32(in.TimeoutMillis)
	e.Locator = cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: in.Store}
	return e, nil
}

func (k *control) removeSnapshot(w http.ResponseWriter, r *http.Request) {
	var in api.SnapshotRequest
	if !decode(w, r, &in) {
		return
	}
	id, ok := k.parse(w, "snapshot", in.UUID)
	if !ok {
		return
	}
	ctx, cancel := patient()
	defer cancel()
	k.answer(w, k.volume.RemoveSnapshot(ctx, id))
}

func (k *control) cursor(w http.ResponseWriter, r *http.Request) {
	var in api.SnapshotCursorRequest
	if !decode(w, r, &in) {
		return
	}
	id, ok := k.parse(w, "snapshot", in.UUID)
	if !ok {
		return
	}
	if size := k.volume.Info().Size; in.Cursor < 0 || in.Cursor > size {
		refuse(w, fmt.Errorf("cursor of snapshot %v of %s: %d: want 0 to %d", id, k.volume.Info().Name, in.Cursor, size))
		return
	}
	ctx, cancel := patient()
	defer cancel()
	k.answer(w, k.volume.SetCursor(ctx, id, in.Cursor))
}

func (k *control) cut(w http.ResponseWriter, r *http.Request) {
	var in api.CutRequest
	if !decode(w, r, &in) {
		return
	}
	id, ok := k.parse(w, "cut", in.Cut)
	if !ok {
		return
	}
	if in.DeadlineMillis <= 0 || in.DeadlineMillis > maxDeadline.Milliseconds() {
		refuse(w, fmt.Errorf("cut of %s: deadlineMillis %d: want 1 to %d", k.volume.Info().Name, in.DeadlineMillis, maxDeadline.Milliseconds()))
		return
	}
	ctx, cancel := patient()
	defer cancel()
	err := k.volume.Cut(ctx, id, time.Duration(in.DeadlineMillis)*time.Millisecond)
	if err == nil && k.isEnding() {
		k.volume.AbandonCut()
		err = fmt.Errorf("cut of %s: it is being closed", k.volume.Info().Name)
	}
	k.answer(w, err)
}

func (k *control) endCut(w http.ResponseWriter, r *http.Request) {
	var in api.CutEndRequest
	if !decode(w, r, &in) {
		return
	}
	id, ok := k.parse(w, "cut", in.Cut)
	if !ok {
		return
	}
	ctx, cancel := patient()
	defer cancel()
	k.answer(w, k.volume.EndCut(ctx, id, in.Keep))
}

// parse reads a UUID of a request, or refuses that.
func (k *control) parse(w http.ResponseWriter, what, text string) (uuid.UUID, bool) {
	id, err := uuid.Parse(text)
	if err != nil {
		refuse(w, fmt.Errorf("%s of %s: %q: %w", what, k.volume.Info().Name, text, err))
	}
	return id, err == nil
}

func (k *control) isEnding() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ending
}

// stack tells of the volume's snapshots.
func (k *control) stack() (out []api.SnapshotStatus) {
	for _, s := range k.volume.Stack() {
		status := api.SnapshotStatus{
			UUID: s.ID.String(), Cut: s.Cut.String(), Store: s.Path, State: cowfmt.StackStateName(s.State), Cursor: s.Cursor,
			Saved: s.Saved, ChunkSize: s.ChunkSize, OnError: api.BreakSnapshot, HeldMicros: s.Held.Microseconds(),
		}
		if s.OnError == cowfmt.OnErrorBreakGuestWrite {
			status.OnError = api.BreakGuestWrite
		}
		if s.Err != nil {
			status.Error = s.Err.Error()
		}
		out = append(out, status)
	}
	return out
}
