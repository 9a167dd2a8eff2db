package serve

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// What LUNs do is shown by test/iscsi. A file can't be reserved: then nothing is served, and the store stays as it is.
func TestFileIsNotReserved(t *testing.T) {
	c, _ := config(t)
	before, err := os.ReadFile(c.Store)
	if err != nil {
		t.Fatal(err)
	}
	c.Reservations = true
	err = Run(t.Context(), c, zerolog.Nop(), nil)
	if !errors.Is(err, blockdev.ErrNotSupported) || !strings.Contains(err.Error(), c.Store) || !strings.Contains(err.Error(), `set reservations = "off"`) {
		t.Errorf("%v", err)
	}
	after, err := os.ReadFile(c.Store)
	if err != nil || string(after) != string(before) {
		t.Errorf("the store changed, or: %v", err)
	}
	c.ReadOnly = true // who only reads needs no reservation
	stop := start(t, c)
	if err := stop(); err != nil {
		t.Error(err)
	}
}
