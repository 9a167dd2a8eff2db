package catalogue

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// recordVersion is the version of a record's format.
const recordVersion = 1

// State is what is being done to a volume.
type State string

// The states of a volume. Their texts are those of the control API.
const (
	Creating State = "creating" // begun, and undone if it can't be finished
	Ready    State = "ready"
	Deleting State = "deleting" // begun, and finished whatever comes
	Missing  State = "missing"  // its store was not where it was when it was last looked for
)

// Entry is one volume, or one snapshot. Sizes are bytes, paths absolute. While it is being created only name, UUID,
// state, what is to be made, and of a snapshot its volume and cut are there.
type Entry struct {
	Name  string `json:"name"` // of a snapshot: its UUID
	UUID  string `json:"uuid"`
	State State  `json:"state"`

	Store     string `json:"store,omitempty"` // path; "" until a pool or provider has told it
	Role      string `json:"role,omitempty"`  // clone, state, snapshot
	Size      int64  `json:"size,omitempty"`
	ChunkSize int64  `json:"chunkSize,omitempty"`
	Master    string `json:"master,omitempty"` // raw:PATH, store:PATH or an NBD URI
	Origin    string `json:"origin,omitempty"` // of a state store: path of the raw disk
	CutLoose  bool   `json:"cutLoose,omitempty"`
	Created   int64  `json:"created,omitempty"` // Unix seconds

	Volume     string `json:"volume,omitempty"`     // of a snapshot: its volume's name
	VolumeUUID string `json:"volumeUUID,omitempty"` // of a snapshot
	Cut        string `json:"cut,omitempty"`        // of a snapshot: UUID
	Job        string `json:"job,omitempty"`        // of a snapshot: what it was made for, as whoever wanted it calls it

	Pool       string `json:"pool,omitempty"`       // libvirt's storage pool
	PoolVolume string `json:"poolVolume,omitempty"` // the name of the store there
	Provider   string `json:"provider,omitempty"`   // plugin
	Made       bool   `json:"made,omitempty"`       // the pool volume, or the provider's, was made for this volume: it goes with it
	Error      string `json:"error,omitempty"`      // why creating or deleting could not be brought to an end
}

// Snapshot says whether this is a snapshot of a volume, not a volume.
func (e *Entry) Snapshot() bool { return e.Volume != "" }

// Title is what people are told that this is.
func (e *Entry) Title() string {
	if e.Snapshot() {
		return "snapshot " + e.UUID + " of volume " + e.Volume
	}
	return "volume " + e.Name
}

type record struct {
	Version int `json:"version"`
	Entry
}

// maxRecord bounds a record in bytes.
const maxRecord = 64 << 10

func encode(e Entry) ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(record{recordVersion, e}, "", "  ")
	if err == nil && len(b) >= maxRecord {
		err = fmt.Errorf("record of %d bytes, at most %d", len(b), maxRecord)
	}
	return append(b, '\n'), err
}

func decode(b []byte) (Entry, error) {
	var version struct{ Version int }
	if err := json.Unmarshal(b, &version); err != nil {
		return Entry{}, err
	}
	if version.Version != recordVersion {
		return Entry{}, fmt.Errorf("version %d, this program knows %d", version.Version, recordVersion)
	}
	var r record
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Entry{}, err
	}
	if _, err := d.Token(); err != io.EOF {
		return Entry{}, errors.New("more than one JSON value")
	}
	return r.Entry, r.check()
}

// check refuses what no volume can have: a name or path from a record becomes part of commands and other paths.
func (e *Entry) check() error {
	if err := cowfmt.ValidName(e.Name); err != nil {
		return err
	}
	ids := []string{e.UUID}
	if e.Snapshot() {
		if err := cowfmt.ValidName(e.Volume); err != nil {
			return err
		}
		if e.Name != e.UUID {
			return fmt.Errorf("a snapshot of name %q with UUID %q", e.Name, e.UUID)
		}
		ids = append(ids, e.VolumeUUID, e.Cut)
	}
	for _, s := range ids {
		if id, err := uuid.Parse(s); err != nil || id == uuid.Nil || id.String() != s {
			return fmt.Errorf("%q is no UUID", s)
		}
	}
	switch e.State {
	case Ready, Missing:
		if e.Size <= 0 || e.ChunkSize <= 0 || e.Store == "" {
			return fmt.Errorf("store %q, size %d, chunk size %d", e.Store, e.Size, e.ChunkSize)
		}
		if is := e.Role == cowfmt.RoleSnapshot.String(); is != e.Snapshot() || !is && e.Role != cowfmt.RoleClone.String() && e.Role != cowfmt.RoleState.String() {
			return fmt.Errorf("role %q", e.Role)
		}
		if (e.Role == cowfmt.RoleState.String()) != (e.Origin != "") {
			return fmt.Errorf("role %s with the raw disk %q", e.Role, e.Origin)
		}
	case Creating, Deleting:
	default:
		return fmt.Errorf("state %q", e.State)
	}
	for _, path := range []string{e.Store, e.Origin} {
		if path != "" && (!filepath.IsAbs(path) || filepath.Clean(path) != path) {
			return fmt.Errorf("%q is no absolute, plain path", path)
		}
	}
	return nil
}
