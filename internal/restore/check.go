package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/domainxml"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/store"
)

// ErrInUse says that another domain has what was to be written.
var ErrInUse = errors.New("in use")

// Check says why the plan can't be carried out, and fills in what is there already. It changes nothing.
func (p *Plan) Check(ctx context.Context, c libvirtx.Conn, volumes Volumes) error {
	if err := p.free(ctx, c); err != nil {
		return err
	}
	for i := range p.Disks {
		if err := p.Disks[i].look(p.options.Force); err != nil {
			return fmt.Errorf("disk %s: %w", p.Disks[i].Target, err)
		}
	}
	if err := p.apart(); err != nil {
		return err
	}
	if err := p.others(ctx, c); err != nil {
		return err
	}
	for _, d := range p.Disks {
		if _, err := volumes.Adopt(ctx, d.adopt(true)); err != nil {
			return fmt.Errorf("disk %s: %w", d.Target, err)
		}
	}
	if err := domainxml.CheckState(p.Places, p.State, p.options.Force); err != nil {
		return withForce(err)
	}
	return nil
}

func (d *Disk) adopt(check bool) api.AdoptRequest {
	return api.AdoptRequest{Raw: d.Path, Store: d.State, Name: d.Volume, ForceRaw: true, Check: check}
}

// withForce tells of --force where something is there already.
func withForce(err error) error {
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w: with --force it is lost", err)
	}
	return err
}

// free refuses the name and the UUID of a domain that is there.
func (p *Plan) free(ctx context.Context, c libvirtx.Conn) error {
	for _, by := range []string{p.Domain.Name, p.Domain.UUID.String()} {
		d, err := c.Lookup(ctx, by)
		switch {
		case errors.Is(err, libvirtx.ErrNoDomain):
			continue
		case err != nil:
			return err
		case by == p.Domain.Name:
			return fmt.Errorf("domain %s: %w: restore it under another name with --as, or undefine that one before: virsh undefine --keep-nvram %s",
				d.Name, libvirtx.ErrDomainExists, d.Name)
		}
		return fmt.Errorf("domain %s has the UUID %s: %w: restore it without --keep-identity, or undefine that one before", d.Name, by, libvirtx.ErrDomainExists)
	}
	return nil
}

// look finds out what is at a disk's place, and refuses what may not be written over.
func (d *Disk) look(force bool) error {
	path, err := filepath.EvalSymlinks(d.Path)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Lstat(d.Path); err == nil {
			return fmt.Errorf("%s is a link to nothing", d.Path)
		}
		if _, err := os.Lstat(d.Path + PartSuffix); err == nil {
			return errPart(d.Path + PartSuffix)
		}
		return nil
	}
	if err != nil {
		return err
	}
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case st.Mode()&os.ModeDevice == 0 && !st.Mode().IsRegular():
		return fmt.Errorf("%s is neither a file nor a block device", d.Path)
	case !force:
		return fmt.Errorf("%s is there already: with --force it is written over, and what it holds is lost", d.Path)
	}
	d.There, d.Device = true, st.Mode()&os.ModeDevice != 0
	if !d.Device {
		d.Path = path // the file itself is replaced, not the link
		if _, err := os.Lstat(d.Path + PartSuffix); err == nil {
			return errPart(d.Path + PartSuffix)
		}
	}
	f, err := d.hold()
	if err != nil {
		return err
	}
	defer f.Close()
	return d.fits(f)
}

// hold opens what is there, unless anybody has it: no engine, no mount, no RAID, no QEMU.
func (d *Disk) hold() (*blockdev.File, error) {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	f, err := blockdev.OpenFile(now, d.Path, blockdev.FileOptions{Lock: blockdev.LockExclusive, Exclusive: true})
	if err != nil {
		return nil, err
	}
	if err := NoQEMU(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (d *Disk) fits(f *blockdev.File) error {
	if !d.Device {
		if _, err := store.Open(f); !errors.Is(err, cowfmt.ErrNotStore) {
			return fmt.Errorf("%s is a virt-cow store: `virt-cow store delete %s` removes it", d.Path, d.Path)
		}
		return nil
	}
	switch i := f.Info(); {
	case i.Size < d.Size:
		return fmt.Errorf("%s has %d bytes, and %d are needed", d.Path, i.Size, d.Size)
	case d.Size%int64(i.BlockSize) != 0:
		return fmt.Errorf("%s has sectors of %d bytes: a disk of %d bytes does not fit on it", d.Path, i.BlockSize, d.Size)
	}
	return nil
}
