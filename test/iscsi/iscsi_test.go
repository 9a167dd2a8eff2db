// Package iscsi runs the engine's two-host protocol over real iSCSI: one LUN of a Linux target (LIO), two initiators with
// names and networks of their own, so two I_T nexuses and two disks of one LUN, as two hosts have them. Debian's kernel
// has all that, this machine's may not: so it happens in an emulated machine (QEMU, TCG), whose first and only program is this test
// program again.
//
// TestISCSI outside boots the machine and tells of each part what TestISCSI inside said of it.
package iscsi

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/test/lab"
)

// insideEnv, when set to 1, says that this is the emulated machine.
const insideEnv = "VIRT_COW_ISCSI_INSIDE"

// parts are what is tested, in order. Each has the LUN for itself, empty and with no reservations.
var parts = []struct {
	name string
	run  func(*testing.T, *lun)
}{
	{"Nexuses", testNexuses},
	{"OtherDevices", testOtherDevices},
	{"Register", testRegister},
	{"Preempt", testPreempt},
	{"RegisterAgain", testRegisterAgain},
	{"LateWriteUnfenced", testLateWriteUnfenced},
	{"LateWriteFenced", testLateWriteFenced},
	{"ColdOwnership", testColdOwnership},
	{"OwnerNotRegistered", testOwnerNotRegistered},
	{"NotReservable", testNotReservable},
	{"Capabilities", testCapabilities},
	{"ShutOut", testShutOut},
	{"FencedEngine", testFencedEngine},
	{"KilledEngineUnfenced", testKilledEngineUnfenced},
	{"KilledEngineFenced", testKilledEngineFenced},
	{"Migration", testMigration},
	{"Takeover", testTakeover},
	{"GiverDies", testGiverDies},
}

func TestISCSI(t *testing.T) {
	if os.Getenv(insideEnv) == "1" {
		inside(t)
		return
	}
	if testing.Short() {
		t.Skip("SKIPPED: a machine is emulated, a minute or so")
	}
	for _, p := range programs {
		if err := present(p); err != nil {
			lab.SkipOrFail(t, err)
		}
	}
	disk := filepath.Join(t.TempDir(), "lun")
	results := emulate(t, disk)
	ran := map[string]string{}
	for _, m := range verdict.FindAllStringSubmatch(results, -1) {
		ran[m[2]] = m[1]
	}
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) {
			switch ran[p.name] {
			case "PASS":
			case "":
				t.Error("did not run, or did not end")
			default:
				t.Errorf("%s inside", ran[p.name])
			}
		})
	}
	if !strings.HasSuffix(strings.TrimSpace(results), "PASS") {
		t.Error("the program inside did not end well")
	}
	if t.Failed() || testing.Verbose() {
		t.Logf("inside:\n%s", results)
	}
}

// verdict is how `go test -v` says how a part ended.
var verdict = regexp.MustCompile(`(?m)^ *--- (PASS|FAIL|SKIP): TestISCSI/(\w+) `)
