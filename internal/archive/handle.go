package archive

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
)

// handleType is our storage's name in kopia's list of them.
const handleType = "virt-cow"

// handle stands for an open storage in kopia's configuration file: kopia opens repositories by such a file only, and the real
// configuration has secrets that belong on no disk.
type handle struct {
	Number uint64 `json:"number"`
}

var (
	handles    sync.Map // number -> *storage, until kopia asks for it
	lastHandle atomic.Uint64
)

// register is done before anything is looked up in kopia's list, which no lock guards.
var register = sync.OnceFunc(func() {
	blob.AddSupportedStorage(handleType, handle{}, func(_ context.Context, h *handle, _ bool) (blob.Storage, error) {
		st, ok := handles.LoadAndDelete(h.Number)
		if !ok {
			return nil, errors.New("this storage is of another process")
		}
		return st.(*storage), nil
	})
})

func (s *storage) handle() handle {
	h := handle{lastHandle.Add(1)}
	handles.Store(h.Number, s)
	return h
}

// ConnectionInfo implements blob.Storage. It names no secrets, as kopia writes it to files.
func (s *storage) ConnectionInfo() blob.ConnectionInfo {
	return blob.ConnectionInfo{Type: handleType, Config: &handle{}}
}

// DisplayName implements blob.Storage.
func (s *storage) DisplayName() string { return s.uri }

// sessions are kopia's write sessions that a backup has begun. A pack's name ends with its session, so they tell which
// pieces are new.
type sessions struct {
	mu  sync.Mutex
	ids map[content.SessionID]bool
}

type sessionsKey struct{}

func (s *sessions) add(id content.SessionID) {
	if id == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids[id] = true
}

// wrote tells whether a pack was begun by one of the sessions.
func (s *sessions) wrote(pack blob.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ids[content.SessionIDFromBlobID(pack)]
}
