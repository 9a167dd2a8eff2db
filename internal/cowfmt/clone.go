package cowfmt

import "slices"

// Clone returns a copy that shares nothing with h.
func (h *Header) Clone() *Header {
	c := *h
	c.TableGroups = slices.Clone(h.TableGroups)
	c.Master = clonePointer(h.Master)
	c.MasterIdentity = clonePointer(h.MasterIdentity)
	c.Origin = clonePointer(h.Origin)
	c.OriginIdentity = clonePointer(h.OriginIdentity)
	c.Owner = clonePointer(h.Owner)
	c.Grants = slices.Clone(h.Grants)
	c.Stack = slices.Clone(h.Stack)
	c.Progress.Data = slices.Clone(h.Progress.Data)
	c.Extra = slices.Clone(h.Extra)
	for i, r := range c.Extra {
		c.Extra[i] = r.clone()
	}
	return &c
}

func (r Record) clone() Record {
	r.Data = slices.Clone(r.Data)
	return r
}

func clonePointer[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}
