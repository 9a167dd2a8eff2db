package libvirtx

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// PoolVolume is what libvirt says of a volume in a storage pool.
type PoolVolume struct {
	Path  string
	Size  int64 // bytes
	Local bool  // a file or block device
}

// PoolCalls are libvirt's calls as the drivers have them, from which the methods of Conn are made. Errors are Known.
type PoolCalls interface {
	Pool(ctx context.Context, name string) (xml string, active bool, err error)
	RefreshPool(ctx context.Context, name string) error
	Volume(ctx context.Context, pool, name string) (PoolVolume, error)
	CreateVolumeXML(ctx context.Context, pool, xml string) (PoolVolume, error)
	RemoveVolume(ctx context.Context, pool, name string) error
}

// filePools make files: those may be sparse. Elsewhere a volume whose allocation is smaller than its capacity
// would be refused, or, with LVM, become a snapshot of nothing that fails once it is full.
var filePools = []string{"dir", "fs", "netfs"}

// CreateVolume is Conn's, for the drivers.
func CreateVolume(ctx context.Context, c PoolCalls, pool, name string, size int64) (string, error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("volume %s in storage pool %s: %w", name, pool, err)
	}
	if name == "" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "-") || strings.ContainsAny(name, "/\x00\n") {
		return fail(fmt.Errorf("%w: %q is no name for a volume", ErrPool, name))
	}
	if size <= 0 {
		return fail(fmt.Errorf("%w: a size of %d bytes", ErrPool, size))
	}
	def, err := activePool(ctx, c, pool)
	if err != nil {
		return fail(err)
	}
	text, err := volumeXML(def.Type, name, size)
	if err != nil {
		return fail(err)
	}
	v, err := c.CreateVolumeXML(ctx, pool, text)
	switch {
	case err == nil:
	case errors.Is(err, ErrPool):
		return fail(fmt.Errorf("a pool of type %s makes no volumes: make it on the storage itself, then find it by name: %w", def.Type, err))
	case errors.Is(err, ErrExists) || errors.Is(err, ErrGone) || errors.Is(err, ErrNoAnswer):
		return fail(err)
	default: // perhaps there since the pool was last refreshed
		if _, _, found := FindVolume(ctx, c, pool, name); found == nil {
			return fail(fmt.Errorf("%w: %w", ErrExists, err))
		}
		return fail(err)
	}
	if !v.Local || v.Size < size {
		err := fmt.Errorf("%w: %s of a pool of type %s is no file or block device of %d bytes on this host", ErrPool, v.Path, def.Type, size)
		return fail(errors.Join(err, c.RemoveVolume(ctx, pool, name)))
	}
	return v.Path, nil
}

// FindVolume is Conn's, for the drivers.
func FindVolume(ctx context.Context, c PoolCalls, pool, name string) (string, int64, error) {
	fail := func(err error) (string, int64, error) {
		return "", 0, fmt.Errorf("volume %s in storage pool %s: %w", name, pool, err)
	}
	if _, err := activePool(ctx, c, pool); err != nil {
		return fail(err)
	}
	v, err := c.Volume(ctx, pool, name)
	if errors.Is(err, ErrNoVolume) {
		if err := c.RefreshPool(ctx, pool); err != nil {
			return fail(err)
		}
		v, err = c.Volume(ctx, pool, name)
	}
	if err != nil {
		return fail(err)
	}
	if !v.Local {
		return fail(fmt.Errorf("%w: %s is no file or block device on this host", ErrPool, v.Path))
	}
	return v.Path, v.Size, nil
}

// FoundDisks are Disks, with the file or block device of those in storage pools, as far as their pool knows it.
func FoundDisks(ctx context.Context, c Conn, domainXML string) ([]Disk, error) {
	disks, err := Disks(domainXML)
	if err != nil {
		return nil, err
	}
	for i := range disks {
		d := &disks[i]
		if d.Pool == "" {
			continue
		}
		d.Source, _, err = c.FindVolume(ctx, d.Pool, d.Volume)
		if err != nil && !errors.Is(err, ErrNoPool) && !errors.Is(err, ErrNoVolume) && !errors.Is(err, ErrPool) {
			return nil, err
		}
	}
	return disks, nil
}

// DeleteVolume is Conn's, for the drivers.
func DeleteVolume(ctx context.Context, c PoolCalls, pool, name string) error {
	_, _, err := FindVolume(ctx, c, pool, name)
	if err != nil {
		return err
	}
	err = c.RemoveVolume(ctx, pool, name)
	if errors.Is(err, ErrPool) {
		err = fmt.Errorf("this type of pool deletes no volumes, delete it on the storage itself: %w", err)
	}
	if err != nil {
		return fmt.Errorf("volume %s in storage pool %s: %w", name, pool, err)
	}
	return nil
}

func activePool(ctx context.Context, c PoolCalls, pool string) (*libvirtxml.StoragePool, error) {
	text, active, err := c.Pool(ctx, pool)
	if err != nil {
		return nil, err
	}
	if !active {
		return nil, fmt.Errorf("%w: it is not active: virsh pool-start %s", ErrPool, pool)
	}
	var def libvirtxml.StoragePool
	if err := def.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("%w: its XML: %w", ErrPool, err)
	}
	return &def, nil
}

func volumeXML(poolType, name string, size int64) (string, error) {
	v := libvirtxml.StorageVolume{
		Name:       name,
		Capacity:   &libvirtxml.StorageVolumeSize{Unit: "bytes", Value: uint64(size)},
		Allocation: &libvirtxml.StorageVolumeSize{Unit: "bytes", Value: uint64(size)},
	}
	if slices.Contains(filePools, poolType) {
		v.Allocation.Value = 0
		v.Target = &libvirtxml.StorageVolumeTarget{Format: &libvirtxml.StorageVolumeTargetFormat{Type: "raw"}}
	}
	return v.Marshal()
}
