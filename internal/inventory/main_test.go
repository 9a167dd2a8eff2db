package inventory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/catalogue"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// program is the real virt-cow, built once for all tests.
var testProgram string

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "vcinv")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	testProgram = filepath.Join(dir, "virt-cow")
	if out, err := exec.Command("go", "build", "-tags=virtcow_lean", "-o", testProgram, "../../cmd/virt-cow").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

const mib = 1 << 20

// rig is an inventory in folders of its own.
type rig struct {
	*Inventory
	t      *testing.T
	dir    string
	config Config
}

func newRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	// A short path: a store may be served on a socket in here. Quick where there is a tmpfs.
	memory := "/dev/shm"
	if _, err := os.Stat(memory); err != nil {
		memory = ""
	}
	dir, err := os.MkdirTemp(memory, "vci")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, config: testConfig(dir)}
	for _, c := range change {
		c(&r.config)
	}
	r.open()
	t.Cleanup(func() { r.Close() })
	return r
}

func testConfig(dir string) Config {
	return Config{
		StateDir: filepath.Join(dir, "state"), StoreDir: filepath.Join(dir, "stores"), RunDir: filepath.Join(dir, "run"),
		Program: testProgram, ScanFolders: []string{filepath.Join(dir, "stores")}, Log: zerolog.Nop(),
	}
}

func (r *rig) open() {
	r.t.Helper()
	inv, err := Open(r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Inventory = inv
	r.Recover(context.Background())
}

// reopen is a restart of the daemon.
func (r *rig) reopen() {
	r.t.Helper()
	if err := r.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.open()
}

func (r *rig) path(elem ...string) string { return filepath.Join(append([]string{r.dir}, elem...)...) }

func (r *rig) file(name string, content string) string {
	r.t.Helper()
	path := r.path(name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// raw makes a raw image of some content.
func (r *rig) raw(name string, size int) string {
	return r.file(name, strings.Repeat("abcdefgh", size/8))
}

func (r *rig) run(args ...string) {
	r.t.Helper()
	cmd := exec.Command(testProgram, append([]string{"--run-dir", r.config.RunDir}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("%q: %v\n%s", args, err, out)
	}
}

func (r *rig) create(c api.CreateRequest) api.VolumeInfo {
	r.t.Helper()
	if c.Size == 0 && c.Master == "" && c.From == "" {
		c.Size = mib
	}
	v, err := r.Create(context.Background(), c)
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

func (r *rig) delete(name string) {
	r.t.Helper()
	if _, err := r.Delete(context.Background(), name, api.DeleteRequest{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) scan(paths ...string) api.ScanReport {
	r.t.Helper()
	s, err := r.Scan(context.Background(), api.ScanRequest{Paths: paths})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// tree is all files below a folder, hidden ones too.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			all = append(all, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func wants(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// refused checks an error's kind and words.
func refused(t *testing.T, err error, kind error, says ...string) {
	t.Helper()
	if err == nil || kind != nil && !errors.Is(err, kind) {
		t.Errorf("got %v, want %v", err, kind)
		return
	}
	for _, text := range says {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("does not say %q: %v", text, err)
		}
	}
}

// loop puts a loop device over a new file, and gives it a stable name in a /dev of the rig's own.
func (r *rig) loop(name string, size int64) (stable, kernel string) {
	r.t.Helper()
	if os.Geteuid() != 0 {
		r.t.Skip("SKIPPED: loop devices need root")
	}
	path := r.file("luns/"+name, "")
	if err := os.Truncate(path, size); err != nil {
		r.t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", path).CombinedOutput()
	if err != nil {
		r.t.Skipf("SKIPPED: no loop device: %v: %s", err, out)
	}
	kernel = strings.TrimSpace(string(out))
	r.t.Cleanup(func() { _ = exec.Command("losetup", "--detach", kernel).Run() })
	stable = r.path("dev/disk/by-id/scsi-" + name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(stable), 0o700), os.Symlink(kernel, stable)); err != nil {
		r.t.Fatal(err)
	}
	r.devices.root = r.path("dev")
	return stable, kernel
}

// folderPools is a storage pool for tests of logic: real ones are tested end to end.
type folderPools struct {
	dir    string
	before func(call string)
	after  func(call string)
	fail   map[string]error
}

func (p *folderPools) call(name string, do func() error) error {
	if p.before != nil {
		p.before(name)
	}
	if err := p.fail[name]; err != nil {
		return err
	}
	err := do()
	if p.after != nil {
		p.after(name)
	}
	return err
}

func (p *folderPools) CreateVolume(_ context.Context, _, name string, size int64) (path string, err error) {
	path = filepath.Join(p.dir, name)
	return path, p.call("create", func() error {
		if _, err := os.Lstat(path); err == nil {
			return libvirtx.ErrExists
		}
		return errors.Join(os.MkdirAll(p.dir, 0o700), os.WriteFile(path, nil, 0o600), os.Truncate(path, size))
	})
}

func (p *folderPools) FindVolume(_ context.Context, pool, name string) (path string, size int64, err error) {
	path = filepath.Join(p.dir, name)
	return path, 0, p.call("find", func() error {
		if pool == "nopool" {
			return libvirtx.ErrNoPool
		}
		if _, err := os.Lstat(path); err != nil {
			return libvirtx.ErrNoVolume
		}
		return nil
	})
}

func (p *folderPools) DeleteVolume(_ context.Context, _, name string) error {
	return p.call("delete", func() error {
		err := os.Remove(filepath.Join(p.dir, name))
		if errors.Is(err, os.ErrNotExist) {
			return libvirtx.ErrNoVolume
		}
		return err
	})
}

func (p *folderPools) use(c *Config) { c.Pools = func() (Pools, error) { return p, nil } }

func ready(t *testing.T, r *rig, name string) catalogue.Entry {
	t.Helper()
	e, err := r.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	return e
}
