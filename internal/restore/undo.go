package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/domainxml"
	"github.com/virt-cow/virt-cow/internal/durable"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// Undone is what became of a restore that was cut off.
type Undone struct {
	Finished bool     `json:"finished"`          // it had come to its end: the domain is defined
	Removed  []string `json:"removed,omitempty"` // volumes and files, in words
	Left     []string `json:"left,omitempty"`    // what stays, and why
}

// Undo removes what the intent says that the restore has made, and then the intent. What may be somebody else's by now stays.
// After an error the intent stays too, and Undo may be called again.
func (e *Entry) Undo(ctx context.Context, c libvirtx.Conn, volumes Volumes) (*Undone, error) {
	u := &Undone{}
	there, err := e.defined(ctx, c)
	if err != nil {
		return nil, err
	}
	if there && e.Whole {
		u.Finished = true
		return u, errors.Join(durable.Remove(e.definition()), e.end())
	}
	has, err := e.owners(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, d := range e.Disks {
		if err := d.forget(ctx, volumes, u); err != nil {
			return u, err
		}
	}
	if err := e.removeState(u, has.state); err != nil {
		return u, err
	}
	for _, d := range e.Disks {
		if err := d.remove(u, has.disks[d.Path]); err != nil {
			return u, err
		}
	}
	return u, errors.Join(durable.Remove(e.definition()), e.end())
}

// owners are domains that have what the restore has made: by hand one may have been defined with it since.
type owners struct {
	state string            // the domain with the NVRAM or the TPM
	disks map[string]string // by path
}

func (e *Entry) owners(ctx context.Context, c libvirtx.Conn) (owners, error) {
	has := owners{disks: map[string]string{}}
	err := definitions(ctx, c, func(x libvirtx.Domain, text string) error {
		p, err := domainxml.PlacesOf(text)
		if err != nil {
			return err
		}
		if x.UUID.String() == e.UUID || e.NVRAM != "" && p.NVRAM != "" && samePlace(e.NVRAM, p.NVRAM) {
			has.state = x.Name
		}
		disks, err := libvirtx.FoundDisks(ctx, c, text)
		for _, disk := range disks {
			for _, d := range e.Disks {
				if disk.Source != "" && samePlace(disk.Source, d.Path) {
					has.disks[d.Path] = x.Name
				}
			}
		}
		return err
	})
	return has, err
}

// defined says whether libvirt has the domain.
func (e *Entry) defined(ctx context.Context, c libvirtx.Conn) (bool, error) {
	d, err := c.Lookup(ctx, e.UUID)
	if errors.Is(err, libvirtx.ErrNoDomain) {
		return false, nil
	}
	return err == nil && d.Name == e.Domain, err
}

// forget deletes the disk's volume: its state store, not the disk.
func (d *IntentDisk) forget(ctx context.Context, volumes Volumes, u *Undone) error {
	v, err := volumes.Volume(ctx, d.Volume)
	switch {
	case notFound(err):
		return nil
	case err != nil:
		return err
	case v.Origin != d.Path:
		u.Left = append(u.Left, fmt.Sprintf("volume %s: it is of another disk, %s", d.Volume, v.Origin))
		return nil
	}
	if _, err := volumes.Delete(ctx, d.Volume, api.DeleteRequest{}); err != nil && !notFound(err) {
		return fmt.Errorf("volume %s: %w", d.Volume, err)
	}
	u.Removed = append(u.Removed, "volume "+d.Volume)
	return nil
}

// removeState removes NVRAM and TPM state, unless they may be another domain's.
func (e *Entry) removeState(u *Undone, owner string) error {
	there, err := domainxml.StateAt(domainxml.Places{NVRAM: e.NVRAM, TPM: e.TPM})
	if err != nil {
		return err
	}
	for _, path := range there {
		switch {
		case owner != "":
			u.Left = append(u.Left, path+": domain "+owner+" is defined and may have it")
		case e.Replaced:
			u.Left = append(u.Left, path+": there was such a file before, and this may still be it")
		default:
			if err := durable.Remove(path); err != nil {
				return err
			}
			u.Removed = append(u.Removed, path)
		}
	}
	if e.NVRAM != "" {
		if err := durable.Remove(e.NVRAM + durable.NewSuffix); err != nil {
			return err
		}
	}
	if e.TPM != "" && owner == "" && !e.Replaced { // its folders, where they are empty
		_ = os.Remove(e.TPM)
		_ = os.Remove(filepath.Dir(e.TPM))
	}
	return nil
}

// remove removes the disk's file, unless a domain has it.
func (d *IntentDisk) remove(u *Undone, owner string) error {
	if d.Device {
		u.Left = append(u.Left, d.Path+": what the device held before is lost; if its disk did not become whole its first MiB is zeros")
		return nil
	}
	for _, path := range []string{d.Path + PartSuffix, d.Path} {
		st, err := os.Lstat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		x := st.Sys().(*syscall.Stat_t)
		ours := d.Ino != 0 && x.Dev == d.Dev && x.Ino == d.Ino
		if d.Ino == 0 && path != d.Path { // its number is noted before anything is written to it
			ours = st.Mode().IsRegular() && st.Size() == 0
		}
		switch {
		case ours && path == d.Path && owner != "":
			u.Left = append(u.Left, path+": domain "+owner+" has it as a disk")
		case ours:
			if err := durable.Remove(path); err != nil {
				return err
			}
			u.Removed = append(u.Removed, path)
		case path != d.Path:
			u.Left = append(u.Left, path+": it is not the file that the restore made")
		}
	}
	return nil
}
