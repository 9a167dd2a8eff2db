package api

import (
	"strings"
	"testing"
)

func TestIsUUID(t *testing.T) {
	const id = "0f3bb0b2-1d1c-4a5e-9d0a-6e1f2a3b4c5d"
	if !IsUUID(id) {
		t.Errorf("%s is refused", id)
	}
	for _, s := range []string{"", "..", strings.ToUpper(id), "{" + id + "}", "urn:uuid:" + id, strings.ReplaceAll(id, "-", ""),
		"00000000-0000-0000-0000-000000000000", id + "/.."} {
		if IsUUID(s) {
			t.Errorf("%q is taken for a UUID", s)
		}
	}
}
