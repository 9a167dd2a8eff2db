package lab

import (
	"os"
	"testing"
)

func TestExplore(t *testing.T) {
	script := os.Getenv("EXPLORE")
	if script == "" {
		t.Skip("no script")
	}
	h := For(t, Config{Log: t.Output()})
	g, err := h.Define(t.Context(), GuestConfig{Name: "g1"})
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("NOBOOT") == "" {
		if err := g.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	cmd := h.Command(t.Context(), "sh", "-c", script)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	t.Log(cmd.Run())
}
