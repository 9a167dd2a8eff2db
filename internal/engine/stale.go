//go:build virtcow_stale

package engine

import "github.com/virt-cow/virt-cow/internal/cowfmt"

// staleTable is how the exception table of two hosts goes wrong: a receiver loads all of it when it opens the volume, trusts
// its zeros, and never looks again. Tests are built with it to show that they would find that.
const staleTable = true

// loadStale loads the whole table and trusts it.
func (v *Volume) loadStale() error {
	for leaf := range v.cache.leaves {
		if err := v.table.load(leaf); err != nil {
			return err
		}
	}
	v.table.mode.Store(uint32(cowfmt.CacheOn))
	return nil
}
