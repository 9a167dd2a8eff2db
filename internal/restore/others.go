package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/virt-cow/virt-cow/internal/domainxml"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

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
	return definitions(ctx, c, func(_ libvirtx.Domain, text string) error { return p.other(ctx, c, text) })
}

// definitions has all domains of this host looked at as they are, and as they will be at their next start.
func definitions(ctx context.Context, c libvirtx.Conn, look func(d libvirtx.Domain, text string) error) error {
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
				err = look(d, text)
			}
			if err != nil {
				return fmt.Errorf("domain %s: %w", d.Name, err)
			}
		}
	}
	return nil
}

func (p *Plan) other(ctx context.Context, c libvirtx.Conn, text string) error {
	disks, err := libvirtx.FoundDisks(ctx, c, text)
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
