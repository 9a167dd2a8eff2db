package rpc

import (
	"context"

	"github.com/digitalocean/go-libvirt"

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

func (p pools) Pool(ctx context.Context, name string) (string, bool, error) {
	type answer struct {
		xml    string
		active bool
	}
	a, err := call(ctx, p.r, "pool", func() (a answer, err error) {
		pool, err := p.r.l.StoragePoolLookupByName(name)
		if err != nil {
			return a, err
		}
		active, err := p.r.l.StoragePoolIsActive(pool)
		if err != nil {
			return a, err
		}
		a.active = active == 1
		a.xml, err = p.r.l.StoragePoolGetXMLDesc(pool, 0)
		return a, err
	})
	return a.xml, a.active, err
}

func (p pools) RefreshPool(ctx context.Context, name string) error {
	return do(ctx, p.r, "refresh pool", func() error {
		pool, err := p.r.l.StoragePoolLookupByName(name)
		if err != nil {
			return err
		}
		return p.r.l.StoragePoolRefresh(pool, 0)
	})
}

func (p pools) Volume(ctx context.Context, pool, name string) (libvirtx.PoolVolume, error) {
	return call(ctx, p.r, "find volume", func() (v libvirtx.PoolVolume, err error) {
		vol, err := p.volume(pool, name)
		if err != nil {
			return v, err
		}
		return p.describe(vol)
	})
}

func (p pools) CreateVolumeXML(ctx context.Context, pool, xml string) (libvirtx.PoolVolume, error) {
	return call(ctx, p.r, "create volume", func() (v libvirtx.PoolVolume, err error) {
		in, err := p.r.l.StoragePoolLookupByName(pool)
		if err != nil {
			return v, err
		}
		vol, err := p.r.l.StorageVolCreateXML(in, xml, 0)
		if err != nil {
			return v, err
		}
		return p.describe(vol)
	})
}

func (p pools) RemoveVolume(ctx context.Context, pool, name string) error {
	return do(ctx, p.r, "delete volume", func() error {
		vol, err := p.volume(pool, name)
		if err != nil {
			return err
		}
		return p.r.l.StorageVolDelete(vol, 0)
	})
}

func (p pools) volume(pool, name string) (libvirt.StorageVol, error) {
	in, err := p.r.l.StoragePoolLookupByName(pool)
	if err != nil {
		return libvirt.StorageVol{}, err
	}
	return p.r.l.StorageVolLookupByName(in, name)
}

func (p pools) describe(vol libvirt.StorageVol) (v libvirtx.PoolVolume, err error) {
	kind, capacity, _, err := p.r.l.StorageVolGetInfo(vol)
	if err != nil {
		return v, err
	}
	v.Size = int64(capacity)
	v.Local = kind == int8(libvirt.StorageVolFile) || kind == int8(libvirt.StorageVolBlock)
	v.Path, err = p.r.l.StorageVolGetPath(vol)
	return v, err
}
