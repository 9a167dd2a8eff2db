package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
)

// lastOfControl3 is the last commit whose engines speak version 3 of the control protocol.
const lastOfControl3 = "5f4ba01ef6d78c7be14f9805caae325d37fca9c5"

// TestUpgrade replaces the program, and the daemon that runs it, under a guest that writes: the engine is adopted, known
// as one that runs an old binary, and replaced when that is asked for. The guest sees nothing of it.
func TestUpgrade(t *testing.T) {
	for _, c := range []struct {
		name    string
		control int // version of the control protocol before
		before  func(t *testing.T) string
		end     syscall.Signal // of the daemon before
	}{
		{"control-3", 3, buildOfControl3, syscall.SIGTERM},
		{"control-3-killed", 3, buildOfControl3, syscall.SIGKILL},
		{"another-build", api.ControlVersion, buildOfToday, syscall.SIGTERM},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := c.before(t)
			b := newBed(t, lab0)
			must(t, b.vc.Daemon().Stop(syscall.SIGTERM))
			installed := filepath.Join(b.Dir, "virt-cow")
			install(t, before, installed)
			b.vc = b.VirtCow(installed)
			_, err := b.vc.StartDaemon(t.Context())
			must(t, err)
			store := b.clone(t, "c1")
			b.run(t, "attach", "g1", "--store", store, "--rate", "64K")
			must(t, b.guest.Boot(t.Context()))
			s := b.await(t, "c1", "attached", attached)
			if s.Engine.ControlVersion != c.control {
				t.Fatalf("the engine speaks version %d of the control protocol: this test proves nothing", s.Engine.ControlVersion)
			}
			dev := b.disk(t, store)
			b.startWriter(t, dev)

			install(t, program, installed)
			must(t, b.vc.Daemon().Stop(c.end))
			b.awaitWrites(t, 50)
			_, err = b.vc.StartDaemon(t.Context())
			must(t, err)
			now := b.await(t, "c1", "adopted", attached)
			if now.PID != s.PID || !now.Old || now.Domain != "g1" {
				t.Fatalf("adopted as %+v, was %+v", now, s)
			}
			if out := b.run(t, "status"); !strings.Contains(out, "old") {
				t.Errorf("status does not show that the engine is old:\n%s", out)
			}
			b.awaitWrites(t, 50)
			b.run(t, "volume", "restart", "--old")
			now = b.await(t, "c1", "served by a new engine", attachedBut(s.PID))
			if now.Old || now.Engine.ControlVersion != api.ControlVersion || now.Engine.Hydration.Rate != 64<<10 {
				t.Errorf("restarted as %+v, %+v", now, now.Engine)
			}
			b.awaitWrites(t, 50)
			if out := b.run(t, "volume", "restart", "--old"); !strings.Contains(out, "nothing to restart") {
				t.Error(out)
			}
			b.assertNoIOErrors(t)
			log := b.stopWriter(t, dev)
			b.run(t, "detach", "g1", "c1")
			b.await(t, "c1", "gone", gone)
			b.verifyOutside(t, store, log)
			b.assertMasterUnchanged(t)
		})
	}
}

// install puts a program in the place of another, which may run, as a package does.
func install(t *testing.T, program, path string) {
	t.Helper()
	b, err := os.ReadFile(program)
	must(t, err)
	must(t, lab.WriteProgram(path+".new", b))
	must(t, os.Rename(path+".new", path))
}

const thisModule = "../.."

// buildOfToday is another build of the program under test.
func buildOfToday(t *testing.T) string {
	t.Helper()
	return buildVersion(t, thisModule)
}

// buildOfControl3 is the program as it was before today's control protocol.
func buildOfControl3(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	archive := filepath.Join(dir, "tree.tar")
	if out, err := exec.CommandContext(t.Context(), "git", "-C", thisModule, "archive", "-o", archive, lastOfControl3).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: no tree of the version before: the history is shallow, or this is no git repository: %v: %s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), "tar", "-x", "-C", dir, "-f", archive).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	return buildVersion(t, dir)
}

// buildVersion builds the program of a tree, as a version of its own.
func buildVersion(t *testing.T, tree string) string {
	t.Helper()
	if err := lab.Check(); err != nil {
		lab.SkipOrFail(t, err)
	}
	out := filepath.Join(t.TempDir(), "virt-cow")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-tags=virtcow_lean", "-ldflags", "-X main.version=before", "-o", out, "./cmd/virt-cow")
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build in %s: %v: %s", tree, err, text)
	}
	return out
}
