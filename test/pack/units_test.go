package pack

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/test/lab"
)

// exposed is what `systemd-analyze security` may say of each unit at most, from 0 to 10. The daemon runs a site's plugins
// and makes stores on any device, so it has more.
var exposed = map[string]float64{
	"virt-cow.service": 4.0, "virt-cow-volume@.service": 3.2, "virt-cow-image-node.service": 3.5, "virt-cow-backup@.service": 2.5,
}

func TestUnitsVerify(t *testing.T) {
	analyze := analyzer(t)
	units, err := filepath.Glob(filepath.Join(source(t), "systemd", "virt*.*"))
	if err != nil || len(units) == 0 {
		t.Fatal("no units: ", err)
	}
	dir := t.TempDir()
	for _, unit := range units {
		b, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		// The package is not installed here.
		text := strings.ReplaceAll(string(b), "/usr/bin/virt-cow", "/bin/true")
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(unit)), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, template := range []string{"virt-cow-volume@.service", "virt-cow-backup@.service", "virt-cow-backup@.timer"} {
		if err := os.Symlink(template, filepath.Join(dir, strings.Replace(template, "@", "@web-1", 1))); err != nil {
			t.Fatal(err)
		}
	}
	for _, unit := range []string{
		"virt-cow.service", "virt-cow-volume@web-1.service", "virtcow.slice", "virt-cow-volumes.target", "virt-cow-image-node.service",
		"virt-cow-backup@web-1.service", "virt-cow-backup@web-1.timer",
	} {
		cmd := exec.Command(analyze, "verify", "--man=no", filepath.Join(dir, unit))
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		out, err := cmd.CombinedOutput()
		var ours []string // of the host's own units it may say what it likes; a warning of ours is an error
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "virt-cow") || strings.Contains(line, "virtcow") || strings.Contains(line, "cycle") {
				ours = append(ours, line)
			}
		}
		if len(ours) > 0 || err != nil && len(out) == 0 {
			t.Errorf("systemd-analyze verify %s: %v:\n%s", unit, err, strings.Join(ours, ""))
		}
	}
}

func TestUnitsSecurity(t *testing.T) {
	analyze := analyzer(t)
	for unit, most := range exposed {
		path := filepath.Join(source(t), "systemd", unit)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// ProtectClock allows one device, and before systemd 252 so refuses all others where nothing else is said of devices.
		if text := string(b); strings.Contains(text, "\nProtectClock=") && !regexp.MustCompile(`\n(DevicePolicy|PrivateDevices)=`).MatchString(text) {
			t.Errorf("%s: ProtectClock, and all devices", unit)
		}
		out, err := exec.Command(analyze, "security", "--no-pager", "--offline=true", path).CombinedOutput()
		if err != nil {
			t.Fatalf("systemd-analyze security %s: %v: %s", unit, err, out)
		}
		level := regexp.MustCompile(`Overall exposure level.*: ([0-9.]+)`).FindSubmatch(out)
		if level == nil {
			t.Fatalf("systemd-analyze security %s: no level: %s", unit, out)
		}
		if v, err := strconv.ParseFloat(string(level[1]), 64); err != nil || v > most {
			t.Errorf("%s: exposed %s, at most %v: %v\n%s", unit, level[1], most, err, out)
		}
	}
}

func analyzer(t *testing.T) string {
	t.Helper()
	p, err := exec.LookPath("systemd-analyze")
	if err != nil {
		lab.SkipOrFail(t, fmt.Errorf("%w: no systemd-analyze: run scripts/deps.sh", lab.ErrMissing))
	}
	return p
}
