//go:build virtcow_stale

package engine

// staleTable is how the exception table of two hosts goes wrong: a receiver loads all of it when it opens the volume, trusts
// its zeros, and never looks again. Tests are built with it to show that they would find that.
const staleTable = true
