package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

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
	lock := unix.Flock_t{Type: unix.F_WRLCK} // QEMU has some bytes locked of each image that it has open
	if err := unix.FcntlFlock(uintptr(f.Fd()), unix.F_OFD_GETLK, &lock); err == nil && lock.Type != unix.F_UNLCK {
		f.Close()
		return nil, fmt.Errorf("%s: %w: a QEMU, or somebody else, has it open", d.Path, blockdev.ErrLocked)
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

// apart refuses one place for two things.
func (p *Plan) apart() error {
	var places []string
	for _, d := range p.Disks {
		for _, path := range []string{d.Path, d.State, d.Path + PartSuffix} {
			if path == "" {
				continue
			}
			if slices.ContainsFunc(places, func(other string) bool { return samePlace(path, other) }) {
				return fmt.Errorf("disk %s: %s is another disk's place too", d.Target, path)
			}
			places = append(places, path)
		}
	}
	return nil
}

// samePlace says whether two paths lead, or will lead, to one file or device.
func samePlace(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	if errX != nil || errY != nil {
		return errX != nil && errY != nil && resolve(a) == resolve(b)
	}
	if os.SameFile(x, y) {
		return true
	}
	return x.Mode()&y.Mode()&os.ModeDevice != 0 && x.Sys().(*syscall.Stat_t).Rdev == y.Sys().(*syscall.Stat_t).Rdev
}

// resolve is the path of a file that is not there yet, its folder's links followed.
func resolve(path string) string {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, filepath.Base(path))
}

// others refuses what another domain of this host has, running or not.
func (p *Plan) others(ctx context.Context, c libvirtx.Conn) error {
	all, err := c.Domains(ctx)
	if err != nil {
		return err
	}
	for _, d := range all {
		for _, definition := range []func(context.Context, libvirtx.Domain) (string, error){c.XML, c.InactiveXML} {
			text, err := definition(ctx, d)
			if errors.Is(err, libvirtx.ErrNoDomain) {
				continue
			}
			if err == nil {
				err = p.other(d.Name, text)
			}
			if err != nil {
				return fmt.Errorf("domain %s: %w", d.Name, err)
			}
		}
	}
	return nil
}

func (p *Plan) other(name, text string) error {
	disks, err := libvirtx.Disks(text)
	if err != nil {
		return err
	}
	for _, disk := range disks {
		for _, d := range p.Disks {
			if disk.Source != "" && samePlace(disk.Source, d.Path) {
				return fmt.Errorf("%s, where disk %s was to be restored, is its disk %s: %w", d.Path, d.Target, disk.Target, ErrInUse)
			}
		}
	}
	places, err := domainxml.PlacesOf(text)
	if err != nil {
		return err
	}
	if p.Places.NVRAM != "" && places.NVRAM != "" && samePlace(p.Places.NVRAM, places.NVRAM) {
		return fmt.Errorf("%s, where the NVRAM was to be restored, is that of this domain: %w", p.Places.NVRAM, ErrInUse)
	}
	return nil
}
