//go:build virtcow_stale

package engine

import "testing"

// Without the protection the scripted case loses an acknowledged write: so the test of the same name without the tag can fail.
func TestStaleTable(t *testing.T) {
	if err := staleCase(t); err == nil {
		t.Error("the stale table was not seen: the test that guards against it proves nothing")
	} else {
		t.Log(err)
	}
}
