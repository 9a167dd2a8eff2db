package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// uncommented is the example with its values in force.
func uncommented() string {
	return regexp.MustCompile(`(?m)^# ([a-z_]+ = )`).ReplaceAllString(Example, "$1")
}

func TestExample(t *testing.T) {
	e := Parse([]byte(Example), "example")
	if err := e.Err(); err != nil || !reflect.DeepEqual(e.Config, Default()) {
		t.Errorf("as shipped: %v\n%+v", err, e.Config)
	}
	e = Parse([]byte(uncommented()), "example")
	if problems := e.Problems(); len(problems) > 0 {
		t.Error(problems)
	}
	if !reflect.DeepEqual(e.Config, Default()) {
		t.Errorf("the example says  %+v\nbut defaults are %+v", e.Config, Default())
	}
	for _, k := range Keys() {
		if !strings.HasPrefix(e.From(k.Name), "example:") {
			t.Errorf("%s is not in the example", k.Name)
		}
		if !strings.HasPrefix(k.Env, "VIRT_COW_") {
			t.Errorf("%s has no variable", k.Name)
		}
	}
	for line := range strings.Lines(Example) {
		if len(line) > 131 {
			t.Errorf("long line: %s", line)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct {
		text string
		says string // in one problem
		line int
	}{
		{"run_dri = \"/x\"", "run_dri is not known; did you mean run_dir?", 1},
		{"\n[libvirt]\nsokcet = \"/x\"", "libvirt.sokcet is not known; did you mean socket?", 3},
		{"\n[libvrit]\nsocket = \"/x\"", "libvrit is not known; did you mean libvirt?", 2},
		{"[libvirt]\nzebra = 1", "libvirt.zebra is not known; in [libvirt] there are: socket, run_dir", 2},
		{"zebra = 1", "zebra is not known; at the top there are: run_dir, state_dir", 1},
		{"listen = \"x\"", "listen is not known here; did you mean migration.listen?", 1},
		{"\"libvirt.socket\" = \"/x\"", "\"libvirt.socket\" is not known", 1},
		{"run_dir = 7", "run_dir is a number, but must be text in quotes", 1},
		{"run_dir = true", "run_dir is true or false", 1},
		{"run_dir = 1979-05-27", "run_dir is a date or time", 1},
		{"libvirt = \"/x\"", "libvirt is text, but must be a table: write [libvirt]", 1},
		{"[[libvirt]]\nsocket = \"/x\"", "libvirt is a list, but must be a table", 1},
		{"[run_dir]\na = 1", "run_dir is a table, but must be text", 1},
		{"[scan]\nfolders = \"/x\"", "scan.folders is text, but must be a list", 2},
		{"[scan]\nfolders = [\"/x\", 1]", "scan.folders has a number in it", 2},
		{"[hook]\ntimeout = 45", "hook.timeout is a number, but must be a time in quotes", 2},
		{"[hook]\ntimeout = \"-1s\"", "\"-1s\" is no time", 2},
		{"[hook]\ntimeout = \"soon\"", "\"soon\" is no time", 2},
		{"hook = {timeout = \"x\"}", "hook.timeout", 1},
		{"hook.timeout = \"x\"", "hook.timeout", 1},
		{"run_dir = \"/x\"\nrun_dir = \"/y\"", "run_dir", 2},
		{"run_dir = \"/x", "column", 1},
		{"run_dir = \"x\"", "run_dir is \"x\", but must be an absolute path", 1},
		{"run_dir = \"\"", "run_dir is empty", 1},
		{"run_dir = \"/\"", "run_dir is the root folder", 1},
		{"run_dir = \"/x/../y\"", "write it as \"/y\"", 1},
		{"run_dir = \"/x/\"", "write it as \"/x\"", 1},
		{"run_dir = \"/x\\u0007\"", "control characters", 1},
		{"run_dir = \"/" + strings.Repeat("x", 96) + "\"", "more than 107", 1},
		{"[libvirt]\nsocket = \"/" + strings.Repeat("x", 107) + "\"", "108 bytes long", 2},
		{"[engine]\nlauncher = \"docker\"", "must be auto, systemd, child", 2},
		{"[engine]\nhost_uuid = \"7\"", "no UUID", 2},
		{"[engine]\nhost_uuid = \"00000000-0000-0000-0000-000000000000\"", "no UUID", 2},
		{"[engine]\ngroup = \"a:b\"", "no name of a group", 2},
		{"[scan]\nfolders = [\"stores\"]", "scan.folders is \"stores\"", 2},
		{"[scan]\ndevices = [\"/dev/sd*\"]", "another disk after the next boot", 2},
		{"[scan]\ndevices = [\"/dev/disk/by-id/[\"]", "no pattern", 2},
		{"[migration]\nlisten = \"16589\"", "migration.listen \"16589\" is nothing to listen at: write :16589", 2},
		{"[migration]\nlisten = \"hv1:16589\"", "no IP address of this host", 2},
		{"[migration]\naddress = \"hv1:x\"", "migration.address \"hv1:x\" is no address", 2},
		{"[migration]\nhosts = [\"a\", \"hv*.example.com\"]", "migration.hosts has \"hv*.example.com\" is no host: a * is only for the whole", 2},
		{"[migration]\nhosts = [\"10.0.0.0/8\"]", "networks can't be given", 2},
		{"[migration]\nkey = \"serverkey.pem\"", "migration.key is \"serverkey.pem\", but must be an absolute path", 2},
		{"[migration]\ntimeout = 10", "a time in quotes", 2},
		{"[backup]\nnode = \"node:x\"", "backup.node \"node:x\" is no address", 2},
		{"[migration]\nlisten = \"\"\n[backup]\nnode = \"node\"", "migration.listen is empty", 4},
		{"[backup]\npull_ports = \"16600\"", "must be two ports, the first and the last", 2},
		{"[backup]\npull_ports = \"2-1\"", "must be two ports", 2},
		{"[backup]\npull_ports = \"1-65536\"", "must be two ports", 2},
		{"[backup]\nfolder = \"x\"", "backup.folder is \"x\"", 2},
		{"[backup]\npool = \"a\"\nprovider = \"b\"", "give one of them", 2},
		{"[image_node]\njobs = 0", "is 0, but must be a number from 1 on", 2},
		{"[image_node]\njobs = \"two\"", "is two, but must be a number from 1 on", 2},
		{"[image_node]\njobs = true", "is true or false, but must be a number", 2},
		{"[image_node]\nlisten = \"\"", "nothing to listen at", 2},
		{"[image_node]\ndevices = [\"/dev/sd*\"]", "another disk after the next boot", 2},
		{"[image_node]\nfolders = [\"x\"]", "must be an absolute path", 2},
		{"[image_node]\nmetrics = \"9789\"", "must be ADDRESS:PORT", 2},
		{"[image_node]\nrate = \"fast\"", "bytes a second, such as 200M", 2},
		{"[archive]\nuri = \"srv/archive\"", "must be a folder's absolute path", 2},
		{"[archive]\nuri = \"https://s3.example.com/b\"", "s3://BUCKET", 2},
		{"[archive]\nuri = \"s3://key:secret@b/p\"", "they go into archive.credentials_file", 2},
		{"[archive]\nuri = \"/a\"\npassphrase_file = \"x\"", "must be an absolute path", 3},
		{"[metrics]\nlisten = \"9788\"", "must be ADDRESS:PORT", 2},
		{"[metrics]\nlisten = \"127.0.0.1:0\"", "port \"0\"", 2},
		{"[metrics]\nlisten = \"127.0.0.1:70000\"", "port \"70000\"", 2},
		{"[metrics]\nlisten = \"example.org:80\"", "IP address", 2},
	} {
		e := Parse([]byte(c.text), "f")
		found := slices.ContainsFunc(e.Problems(), func(p Problem) bool {
			return strings.Contains(p.String(), c.says) && p.Line == c.line && p.Where == "f"
		})
		if err := e.Err(); !found || !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: want %q in line %d, got %v", c.text, c.says, c.line, e.Problems())
		}
	}
}

func TestWarnings(t *testing.T) {
	for text, says := range map[string]string{
		"[metrics]\nlisten = \"0.0.0.0:9788\"":           "everybody who reaches this host",
		"[metrics]\nlisten = \":9788\"":                  "everybody who reaches this host",
		"[migration]\nlisten = \":7\"":                   "migration.hosts is empty",
		"run_dir = \"/" + strings.Repeat("x", 37) + "\"": "may have 63 instead of 64",
	} {
		e := Parse([]byte(text), "f")
		if p := e.Problems(); len(p) != 1 || !p[0].Warning || !strings.Contains(p[0].Message, says) || e.Err() != nil {
			t.Errorf("%q: %v %v", text, p, e.Err())
		}
	}
	for _, text := range []string{"[migration]\nlisten = \"\"", "[migration]\nhosts = [\"*.a\", \"fd00::1\"]\nlisten = \"[::]:7\"\naddress = \"a:8\"", "[metrics]\nlisten = \"[::1]:80\"", "[metrics]\nlisten = \"localhost:80\"", "run_dir = \"/" + strings.Repeat("x", 36) + "\""} {
		if p := Parse([]byte(text), "f").Problems(); len(p) > 0 {
			t.Errorf("%q: %v", text, p)
		}
	}
}

func TestEveryProblemIsTold(t *testing.T) {
	e := Parse([]byte("a = 1\nrun_dir = 2\n[hook]\ntimeout = 3\n[scan]\nfolders = [\"x\", \"y\"]\n"), "f")
	if p := e.Problems(); len(p) != 5 || p[0].Line != 1 || p[2].Line != 4 || p[4].Line != 6 {
		t.Errorf("%v", p)
	}
}

func TestFileEnvFlag(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	text := "run_dir = \"/run/file\"\nlog_dir = \"/file\"\nstate_dir = \"/file\"\n[scan]\nfolders = [\"/a\"]\ndevices = []\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	vars := map[string]string{
		"VIRT_COW_CONFIG": path, "VIRT_COW_RUN_DIR": "/run/env", "VIRT_COW_LOG_DIR": "/env", "VIRT_COW_SCAN_FOLDERS": "/b:/c",
		"VIRT_COW_HOOK_TIMEOUT": "1m", "VIRT_COW_STATE_DIR": "",
	}
	e := Read("", func(name string) (string, bool) { v, ok := vars[name]; return v, ok })
	e.Flag("run_dir", "/run/flag", "--run-dir")
	want := Default()
	want.RunDir, want.LogDir, want.StateDir = "/run/flag", "/env", "/file"
	want.Scan = Scan{Folders: []string{"/b", "/c"}, Devices: []string{}}
	want.Hook.Timeout = Duration(time.Minute)
	if p := e.Problems(); !reflect.DeepEqual(e.Config, want) || len(p) > 0 {
		t.Errorf("%v\ngot  %+v\nwant %+v", p, e.Config, want)
	}
	for key, from := range map[string]string{
		"run_dir": "flag --run-dir", "log_dir": "env VIRT_COW_LOG_DIR", "state_dir": path + ":3", "scan.folders": "env VIRT_COW_SCAN_FOLDERS",
		"scan.devices": path + ":6", "store_dir": "default", "hook.timeout": "env VIRT_COW_HOOK_TIMEOUT",
	} {
		if got := e.From(key); got != from {
			t.Errorf("%s is from %q, want %q", key, got, from)
		}
	}
	e.Flag("run_dir", "rel", "--run-dir")
	e.override("hook.timeout", "never", origin{kind: "env", where: "VIRT_COW_HOOK_TIMEOUT"})
	if err := e.Err(); err == nil || !strings.Contains(err.Error(), "--run-dir: run_dir is \"rel\"") ||
		!strings.Contains(err.Error(), "VIRT_COW_HOOK_TIMEOUT: hook.timeout \"never\" is no time") {
		t.Error(err)
	}
}

func TestMissingFile(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "no.toml")
	if _, err := Load(missing); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Error(err)
	}
	t.Setenv("VIRT_COW_CONFIG", missing)
	if _, err := Load(""); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Error(err)
	}
	if _, err := Load("/dev/zero"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Error(err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, bytes.Repeat([]byte("#"), maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Error(err)
	}
}

func TestCheckHost(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	text := "run_dir = \"/proc\"\nstate_dir = \"" + file + "\"\n[control]\ngroup = \"no-such-group-7\"\n[engine]\ngroup = \"root\"\n"
	problems := Parse([]byte(text), "f").CheckHost()
	for _, want := range []Problem{{Key: "control.group", Line: 4}, {Key: "state_dir", Line: 2}, {Key: "run_dir", Line: 1, Warning: true}} {
		if !slices.ContainsFunc(problems, func(p Problem) bool {
			return p.Key == want.Key && p.Line == want.Line && p.Warning == want.Warning && p.Where == "f"
		}) {
			t.Errorf("no %+v in %v", want, problems)
		}
	}
	if len(problems) != 3 {
		t.Errorf("%v", problems)
	}
	if tmpfs, known := OnTmpfs("/dev/shm/not/there"); !tmpfs || !known {
		if _, err := os.Stat("/dev/shm"); err == nil {
			t.Error("/dev/shm is not known for a tmpfs")
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(Example))
	f.Add([]byte(uncommented()))
	f.Add([]byte("hook = {timeout = \"x\"}\n[[scan]]\na.b.\"c\" = [1, {}]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e := Parse(text, "f")
		lines := bytes.Count(text, []byte("\n")) + 1
		for _, p := range e.Problems() {
			if p.Line < 0 || p.Line > lines || p.Message == "" || p.Where == "f" && p.Line == 0 && p.Key != "" {
				t.Errorf("%+v", p)
			}
		}
		for _, k := range Keys() {
			e.Config.Get(k.Name)
			e.From(k.Name)
		}
		if e.Err() == nil {
			if err := Parse(text, "f").Err(); err != nil {
				t.Errorf("at first well, then %v", err)
			}
		}
	})
}
