//go:build virtcow_databases

package hooks

import (
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// What runs in the Debian, and what prepares it: an overlay, so that nothing is kept, in namespaces that end with the test.
//
//go:embed testdata/databases.sh
var scenario string

const enter = `set -eu
mount -t tmpfs none "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay none -o lowerdir="$1",upperdir="$2/upper",workdir="$2/work" "$2/root"
mount --rbind /dev "$2/root/dev"
mount -t proc none "$2/root/proc"
mount -t tmpfs none "$2/root/run"
mkdir "$2/root/hooks"
cp -r fsfreeze "$2/root/hooks/"
exec chroot "$2/root" sh -s "$3"`

// TestDatabases freezes and thaws a real PostgreSQL and a real MariaDB while they are written to, and has others come back
// from what was on their disks at the cut. VIRT_COW_DATABASES is the folder that scripts/deps.sh databases prints.
func TestDatabases(t *testing.T) {
	root := os.Getenv("VIRT_COW_DATABASES")
	if _, err := os.Stat(filepath.Join(root, "usr/sbin/mariadbd")); root == "" || err != nil {
		t.Fatalf("VIRT_COW_DATABASES=%q is no Debian with databases: %v", root, err)
	}
	script := filepath.Join(t.TempDir(), "databases.sh")
	if err := os.WriteFile(script, []byte(scenario), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, database := range []string{"mariadb", "postgresql"} {
		t.Run(database, func(t *testing.T) {
			in, err := os.Open(script)
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			cmd := exec.CommandContext(t.Context(), "unshare", "-m", "-p", "-n", "-i", "--fork", "--kill-child", "--propagation", "private",
				"sh", "-c", enter, "sh", root, t.TempDir(), database)
			cmd.Stdin = in
			cmd.WaitDelay = time.Minute
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			out, err := cmd.CombinedOutput()
			t.Logf("%s", out)
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
