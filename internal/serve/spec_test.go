package serve

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
)

func goodSpec() api.EngineSpec {
	return api.EngineSpec{
		Version: api.SpecVersion, Volume: "v", UUID: uuid.NewString(), Store: "/s", Socket: "/r/v.sock", Control: "/r/v.ctl", Group: "kvm",
		Client:  &api.Peer{Domain: "g", UUID: uuid.NewString(), PIDFile: "/run/g.pid"},
		Hydrate: true, Rate: 5, CacheOff: true, ReadOnly: true, Devices: []string{"/dev/sda"},
		Address: "a:16520", Incoming: &api.Incoming{Grant: uuid.NewString()},
		Dead: &api.DeadOwner{Host: uuid.NewString(), Instance: uuid.NewString(), Epoch: 3, By: "operator"},
	}
}

func specFile(t *testing.T, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "v.volume")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadSpec(t *testing.T) {
	s := goodSpec()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	c, err := LoadSpec(specFile(t, b))
	if err != nil {
		t.Fatal(err)
	}
	if c.Store != s.Store || c.Name != s.Volume || c.UUID != s.UUID || c.Socket != s.Socket || c.Control != s.Control || c.Group != s.Group ||
		*c.Client != *s.Client || !c.Hydrate || c.Rate != 5 || !c.CacheOff || !c.ReadOnly ||
		c.Address != s.Address || c.Incoming != s.Incoming.Grant || *c.Dead != *s.Dead || c.Reservations {
		t.Errorf("%+v", c)
	}
	if c, err = LoadSpec(specFile(t, []byte(`{"version":3,"volume":"v","store":"/s","socket":"/r/v.sock","control":"/r/v.ctl"}`))); err != nil || c.Name != "v" {
		t.Errorf("of the version before: %+v, %v", c, err)
	}
	s.ReadOnly, s.Reservations, s.Dead.By = false, true, api.ByReservation
	if b, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	if c, err = LoadSpec(specFile(t, b)); err != nil || !c.Reservations || *c.Dead != *s.Dead {
		t.Errorf("reserved: %+v, %v", c, err)
	}
	if _, err := LoadSpec(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestSpecsThatAreRefused(t *testing.T) {
	changed := func(f func(s *api.EngineSpec)) string {
		s := goodSpec()
		f(&s)
		b, _ := json.Marshal(s)
		return string(b)
	}
	for text, says := range map[string]string{
		"":   "unexpected end",
		"{}": "version 0",
		"[]": "cannot unmarshal",
		`{"version":1,"want":{"volume":"v","store":"/s","target":"vdb"}}`:                        "version 1, which only the daemon reads",
		`{"version":5,"volume":7,"unheard":true}`:                                                "version 5, this program knows 4",
		`{"version":4,"volume":"v","readonly ":true}`:                                            "unknown field",
		`{"version":3,"volume":"v","readonly ":true}`:                                            "unknown field",
		changed(func(s *api.EngineSpec) { s.Volume = "../v" }):                                   "volume name",
		changed(func(s *api.EngineSpec) { s.UUID = "x" }):                                        "uuid",
		changed(func(s *api.EngineSpec) { s.Store = "s" }):                                       "store",
		changed(func(s *api.EngineSpec) { s.Socket = "" }):                                       "socket",
		changed(func(s *api.EngineSpec) { s.Control = "c" }):                                     "control",
		changed(func(s *api.EngineSpec) { s.Incoming.Grant = "" }):                               "grant",
		changed(func(s *api.EngineSpec) { s.Dead.Instance = "x" }):                               "dead owner",
		changed(func(s *api.EngineSpec) { s.Dead.By = api.ByReservation }):                       "proves nothing",
		changed(func(s *api.EngineSpec) { s.Dead.By, s.Reservations = api.ByReservation, true }): "proves nothing", // it is read-only
		changed(func(s *api.EngineSpec) { s.Rate = -1 }):                                         "rate",
		changed(func(s *api.EngineSpec) { s.Snapshots = map[string]string{"x": "/s"} }):          "snapshots",
		changed(func(s *api.EngineSpec) { s.Snapshots = map[string]string{s.UUID: "s"} }):        "not an absolute path",
		changed(func(s *api.EngineSpec) { s.Client.PIDFile = "" }):                               "client",
		strings.Repeat(" ", maxSpec) + "{}":                                                      "more than",
	} {
		if _, err := LoadSpec(specFile(t, []byte(text))); !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), says) {
			t.Errorf("%.60s: %v, want %q", text, err, says)
		}
	}
}

func FuzzParseSpec(f *testing.F) {
	b, _ := json.Marshal(goodSpec())
	f.Add(b)
	f.Add([]byte(`{"version":4}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSpec(b)
		if err == nil && (s.Version < api.SpecVersion-1 || s.Volume == "" || !filepath.IsAbs(s.Store) || !filepath.IsAbs(s.Socket)) {
			t.Errorf("taken: %+v", s)
		}
	})
}
