//go:build libvirt_cgo

package cgo

import (
	"context"

	"libvirt.org/go/libvirt"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

func (r *conn) CreateVolume(ctx context.Context, pool, name string, size int64) (string, error) {
	return libvirtx.CreateVolume(ctx, pools{r}, pool, name, size)
}

func (r *conn) FindVolume(ctx context.Context, pool, name string) (string, int64, error) {
	return libvirtx.FindVolume(ctx, pools{r}, pool, name)
}

func (r *conn) DeleteVolume(ctx context.Context, pool, name string) error {
	return libvirtx.DeleteVolume(ctx, pools{r}, pool, name)
}

// pools is conn's libvirtx.PoolCalls.
type pools struct{ r *conn }

// in runs a call on a pool.
func in[T any](ctx context.Context, r *conn, what, pool string, f func(*libvirt.StoragePool) (T, error)) (T, error) {
	return call(ctx, r, what, func(c *libvirt.Connect) (none T, err error) {
		p, err := c.LookupStoragePoolByName(pool)
		if err != nil {
			return none, err
		}
		defer p.Free()
		return f(p)
	})
}

func (p pools) Pool(ctx context.Context, name string) (string, bool, error) {
	type answer struct {
		xml    string
		active bool
	}
	a, err := in(ctx, p.r, "pool", name, func(pool *libvirt.StoragePool) (a answer, err error) {
		if a.active, err = pool.IsActive(); err == nil {
			a.xml, err = pool.GetXMLDesc(0)
		}
		return a, err
	})
	return a.xml, a.active, err
}

func (p pools) RefreshPool(ctx context.Context, name string) error {
	_, err := in(ctx, p.r, "refresh pool", name, func(pool *libvirt.StoragePool) (none struct{}, err error) {
		return none, pool.Refresh(0)
	})
	return err
}

func (p pools) Volume(ctx context.Context, pool, name string) (libvirtx.PoolVolume, error) {
	return in(ctx, p.r, "find volume", pool, func(pool *libvirt.StoragePool) (v libvirtx.PoolVolume, err error) {
		vol, err := pool.LookupStorageVolByName(name)
		if err != nil {
			return v, err
		}
		defer vol.Free()
		return describe(vol)
	})
}

func (p pools) CreateVolumeXML(ctx context.Context, pool, xml string) (libvirtx.PoolVolume, error) {
	return in(ctx, p.r, "create volume", pool, func(pool *libvirt.StoragePool) (v libvirtx.PoolVolume, err error) {
		vol, err := pool.StorageVolCreateXML(xml, 0)
		if err != nil {
			return v, err
		}
		defer vol.Free()
		return describe(vol)
	})
}

func (p pools) RemoveVolume(ctx context.Context, pool, name string) error {
	_, err := in(ctx, p.r, "delete volume", pool, func(pool *libvirt.StoragePool) (none struct{}, err error) {
		vol, err := pool.LookupStorageVolByName(name)
		if err != nil {
			return none, err
		}
		defer vol.Free()
		return none, vol.Delete(libvirt.STORAGE_VOL_DELETE_NORMAL)
	})
	return err
}

func describe(vol *libvirt.StorageVol) (v libvirtx.PoolVolume, err error) {
	info, err := vol.GetInfo()
	if err != nil {
		return v, err
	}
	v.Size = int64(info.Capacity)
	v.Local = info.Type == libvirt.STORAGE_VOL_FILE || info.Type == libvirt.STORAGE_VOL_BLOCK
	v.Path, err = vol.GetPath()
	return v, err
}
