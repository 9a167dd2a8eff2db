package serve

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// ErrSpec says that a file is not an engine's spec, or not one that this program can go by.
var ErrSpec = errors.New("not a usable engine spec")

// maxSpec bounds a spec file, bytes.
const maxSpec = 64 << 10

// LoadSpec reads what the daemon wants served from a file with an api.EngineSpec, and checks all of it that can be
// checked without opening anything. Its errors are ErrSpec or about reading the file.
func LoadSpec(path string) (Config, error) {
	// Without O_NONBLOCK a named pipe given by mistake would block the open for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return Config{}, fmt.Errorf("spec: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err != nil {
		return Config{}, fmt.Errorf("spec: %w", err)
	}
	s, err := parseSpec(b)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w: %w", path, ErrSpec, err)
	}
	c := Config{
		Store: s.Store, Name: s.Volume, UUID: s.UUID, Socket: s.Socket, Control: s.Control, Group: s.Group, Client: s.Client,
		Hydrate: s.Hydrate, Rate: s.Rate, ReadOnly: s.ReadOnly, CacheOff: s.CacheOff, Address: s.Address, Epoch: s.Epoch, Reservations: s.Reservations, Dead: s.Dead,
		Snapshots: s.Snapshots,
	}
	if s.Incoming != nil {
		c.Incoming = s.Incoming.Grant
	}
	return c, nil
}

// parseSpec looks at the version first: the fields of another one are not this program's to judge.
func parseSpec(b []byte) (s api.EngineSpec, err error) {
	if len(b) > maxSpec {
		return s, fmt.Errorf("more than %d bytes", maxSpec)
	}
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return s, err
	}
	switch {
	case v.Version > api.SpecVersion:
		return s, fmt.Errorf("version %d, this program knows %d: a newer daemon wrote it, install its virt-cow", v.Version, api.SpecVersion)
	case v.Version == 1:
		return s, errors.New("version 1, which only the daemon reads: start the daemon, it writes a new one")
	case v.Version < api.SpecVersion-1:
		return s, fmt.Errorf("version %d, want %d", v.Version, api.SpecVersion)
	}
	// Of its own version a field that is not known is a mistake, and may have been meant to keep data safe.
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return s, err
	}
	return s, checkSpec(&s)
}

func checkSpec(s *api.EngineSpec) error {
	if err := cowfmt.ValidName(s.Volume); err != nil {
		return err
	}
	if s.UUID != "" {
		if _, err := uuid.Parse(s.UUID); err != nil {
			return fmt.Errorf("uuid %q: %w", s.UUID, err)
		}
	}
	for _, p := range []struct{ field, path string }{{"store", s.Store}, {"socket", s.Socket}, {"control", s.Control}} {
		if !filepath.IsAbs(p.path) {
			return fmt.Errorf("%s %q: not an absolute path", p.field, p.path)
		}
	}
	if s.Rate < 0 {
		return fmt.Errorf("rate %d: want bytes a second, 0 for no limit", s.Rate)
	}
	if s.Incoming != nil {
		if _, err := uuid.Parse(s.Incoming.Grant); err != nil {
			return fmt.Errorf("incoming: grant %q: %w", s.Incoming.Grant, err)
		}
	}
	if _, err := deadOwner(s.Dead); err != nil {
		return err
	}
	if s.Dead != nil && s.Dead.By == api.ByReservation && (!s.Reservations || s.ReadOnly) {
		return errors.New("dead owner: by reservation, but nothing is to be reserved: that proves nothing")
	}
	if _, err := stackPaths(s.Snapshots); err != nil {
		return err
	}
	return checkPeer(s.Client)
}
