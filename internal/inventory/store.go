package inventory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/virt-cow/virt-cow/internal/catalogue"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// found is a store as `virt-cow store scan --json` tells of it. Sizes are bytes.
type found struct {
	Path      string    `json:"path"`
	Paths     []string  `json:"paths"` // all names it was found under, Path among them
	Name      string    `json:"name"`
	UUID      string    `json:"uuid"`
	Role      string    `json:"role"`
	Size      int64     `json:"size"`
	ChunkSize int64     `json:"chunkSize"`
	Master    string    `json:"master"`
	Origin    string    `json:"origin"`
	Volume    string    `json:"volume"` // of a snapshot: its volume's UUID
	Cut       string    `json:"cut"`    // of a snapshot
	CutLoose  bool      `json:"cutLoose"`
	Created   time.Time `json:"created"`
	Owner     *struct {
		Host     string    `json:"host"`
		HostName string    `json:"hostName"`
		Since    time.Time `json:"since"`
	} `json:"owner"`
	Error string `json:"error"` // why it can't be read
}

// volume says whether the store is one of a volume, not of a snapshot.
func (f *found) volume() bool {
	return f.Role == cowfmt.RoleClone.String() || f.Role == cowfmt.RoleState.String()
}

// title is what people are told that this is.
func (f *found) title() string {
	e := f.into(catalogue.Entry{})
	return e.Title()
}

// into makes the entry say what the header says. What only the catalogue knows stays.
func (f *found) into(e catalogue.Entry) catalogue.Entry {
	e.Name, e.UUID, e.Role, e.Size, e.ChunkSize = f.Name, f.UUID, f.Role, f.Size, f.ChunkSize
	e.Master, e.Origin, e.CutLoose, e.Created = f.Master, f.Origin, f.CutLoose, f.Created.Unix()
	if !f.volume() {
		e.Name, e.Volume, e.VolumeUUID, e.Cut = f.UUID, f.Name, f.Volume, f.Cut
	}
	return e
}

// look reads the header at one path: nil if no store is there. An error says that this could not be found out.
func (inv *Inventory) look(ctx context.Context, path string) (*found, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var all []found
	if err := inv.program.run(ctx, &all, nil, "store", "scan", "--", path); err != nil {
		return nil, err
	}
	switch {
	case len(all) == 0:
		return nil, nil
	case len(all) > 1:
		return nil, fmt.Errorf("%s: %d stores at one path", path, len(all))
	case all[0].Error != "":
		return nil, fmt.Errorf("%s: %s", path, all[0].Error)
	}
	return &all[0], nil
}

// sized is what `virt-cow store size --json` tells.
type sized struct {
	Size      int64 `json:"size"`
	ChunkSize int64 `json:"chunkSize"`
	Room      int64 `json:"room"` // what the store needs
}

// temporary is the file in which `virt-cow store create --uuid` makes a store before it has its name.
func temporary(store, id string) string {
	return filepath.Join(filepath.Dir(store), "."+filepath.Base(store)+"."+id)
}
