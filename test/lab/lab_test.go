package lab

import (
	"errors"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	Main()
	switch os.Getenv(holdEnv) {
	case "":
	case "site":
		holdSite()
	default:
		hold()
	}
	os.Exit(m.Run())
}

func TestGuestRunsCommands(t *testing.T) {
	h := For(t, Config{Log: t.Output()})
	g, err := h.Define(t.Context(), GuestConfig{Name: "g1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, err := g.Run(t.Context(), "echo one; echo two >&2; uname -r; free -m; mkfs.ext4 -V")
	if err != nil {
		t.Fatal(err)
	}
	t.Log(out)
	_, err = g.Run(t.Context(), "echo no; exit 7")
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 7 || exit.Output != "no\n" {
		t.Fatal(err)
	}
	if err := g.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
}
