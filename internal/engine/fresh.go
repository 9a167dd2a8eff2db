//go:build !virtcow_stale

package engine

// staleTable takes the protection away; see stale.go. Never in a program that is installed.
const staleTable = false

func (v *Volume) loadStale() error { return nil }
