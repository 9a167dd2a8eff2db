package inventory

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/catalogue"
)

// The child process does what the variable says in the folder childDir and is killed at a step: a run of the
// program, or a call of the storage pool. These are all there is between two records of the catalogue.
const (
	childDir  = "VIRT_COW_TEST_INVENTORY"
	childTask = "VIRT_COW_TEST_TASK"
	childStep = "VIRT_COW_TEST_STEP" // number, from 1
	childHow  = "VIRT_COW_TEST_HOW"  // before, after, meanwhile: the program goes on while the child is gone
)

// wrapper is a program that counts its runs and kills its parent at the one asked for. $1 is --json.
const wrapper = `#!/bin/sh
n=$(($(cat "$DIR/count") + 1)); echo $n >"$DIR/count"
if [ $n = "$VIRT_COW_TEST_STEP" ]; then
	case $VIRT_COW_TEST_HOW in
	before) kill -9 $PPID; exit 1 ;;
	after) "$REAL" "$@" >/dev/null 2>&1; kill -9 $PPID; exit 1 ;;
	meanwhile) setsid sh -c 'sleep 0.3; exec "$REAL" "$@"' sh "$@" >/dev/null 2>&1 & kill -9 $PPID; exit 1 ;;
	esac
fi
exec "$REAL" "$@"
`

func child(dir string) {
	config := testConfig(dir)
	config.Program = filepath.Join(dir, "wrapper")
	step, _ := strconv.Atoi(os.Getenv(childStep))
	kill := func(when string) func(string) {
		return func(string) {
			path := filepath.Join(dir, "count")
			b, _ := os.ReadFile(path)
			n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
			if when == "before" {
				n++
				_ = os.WriteFile(path, []byte(strconv.Itoa(n)), 0o600)
			}
			if n == step && os.Getenv(childHow) == when {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
		}
	}
	pools := &folderPools{dir: filepath.Join(dir, "pool"), before: kill("before"), after: kill("after")}
	pools.use(&config)
	inv, err := Open(config)
	if err == nil {
		task, name, _ := strings.Cut(os.Getenv(childTask), " ")
		switch task {
		case "create":
			_, err = inv.Create(ctx, api.CreateRequest{Name: name, Size: mib, Master: filepath.Join(dir, "m.raw")})
		case "pool":
			_, err = inv.Create(ctx, api.CreateRequest{Name: name, Size: mib, Pool: "default"})
		case "delete":
			_, err = inv.Delete(ctx, name, api.DeleteRequest{})
		case "snapshot", "unsnapshot":
			err = childSnapshot(inv, task, name)
		}
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// killed runs the task in a child that dies at a step. Not killed: the task has no such step, and was done.
func (r *rig) killed(task, how string, step int) bool {
	r.t.Helper()
	r.file("count", "0")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+r.dir, childTask+"="+task, childHow+"="+how, childStep+"="+strconv.Itoa(step),
		"DIR="+r.dir, "REAL="+testProgram)
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return false
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled():
		return true
	}
	r.t.Fatalf("%s, killed %s step %d: %v\n%s", task, how, step, err, out)
	return false
}

func TestKilledAtEachStep(t *testing.T) {
	for _, how := range []string{"before", "after", "meanwhile"} {
		for _, task := range []string{"create", "pool"} {
			t.Run(task+" "+how, func(t *testing.T) {
				t.Parallel()
				killEachStep(t, task, how)
			})
		}
	}
}

// killEachStep: what was killed while it was being made is gone with all its traces, what was being deleted is whole
// or gone, and what is another's is as it was.
func killEachStep(t *testing.T, task, how string) {
	pools := &folderPools{}
	r := newRig(t, pools.use)
	pools.dir = r.path("pool")
	r.raw("m.raw", mib)
	if err := os.Chmod(r.file("wrapper", wrapper), 0o700); err != nil {
		t.Fatal(err)
	}
	bystander := r.create(api.CreateRequest{Name: "bystander"})
	r.file("stores/.v.vcow.11111111-1111-4111-8111-111111111111", "another's temporary file")
	r.file("pool/v-11111111.vcow", "another's volume")
	was := append(tree(t, r.path("stores")), tree(t, pools.dir)...)
	check := func(what string, volumes ...string) {
		t.Helper()
		r.open()
		var names []string
		for _, v := range r.List() {
			names = append(names, v.Name)
			if v.State != api.StateReady || v.Error != "" {
				t.Errorf("%s: %+v", what, v)
			}
			if shown, err := r.Show(ctx, v.Name); err != nil || shown.Error != "" {
				t.Errorf("%s: %+v, %v", what, shown, err)
			}
		}
		wants(t, what+": volumes", names, append([]string{"bystander"}, volumes...))
		now := append(tree(t, r.path("stores")), tree(t, pools.dir)...)
		if len(now) != len(was)+len(volumes) || !slices.Equal(now, was) && len(volumes) == 0 {
			t.Errorf("%s: files %q, want those of %q and %q", what, now, volumes, was)
		}
		if v, err := r.Show(ctx, "bystander"); err != nil || v != bystander {
			t.Errorf("%s: %+v %v", what, v, err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	// A step that is a call of the pool has no "meanwhile": the child is not killed then.
	again := func(task string) int {
		t.Helper()
		if r.killed(task+" v", how, 1000) {
			t.Fatal("killed?")
		}
		b, err := os.ReadFile(r.path("count"))
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	steps, kills := again(task), 0
	check(task, "v")
	deleteSteps := again("delete")
	check("delete")
	for step := 1; step <= steps; step++ {
		what := fmt.Sprintf("%s, killed %s step %d of %d", task, how, step, steps)
		if r.killed(task+" v", how, step) {
			kills++
			check(what)
		} else {
			again("delete")
		}
	}
	for step := 1; step <= deleteSteps; step++ {
		what := fmt.Sprintf("delete, killed %s step %d of %d", how, step, deleteSteps)
		again(task)
		if r.killed("delete v", how, step) {
			kills++
		}
		r.open()
		_, err := r.Lookup("v")
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if err == nil {
			check(what, "v")
			again("delete")
		}
		check(what)
	}
	if min := map[string]int{"create": 6, "pool": 6}[task]; kills < min {
		t.Errorf("only %d kills", kills)
	}
	check("delete")
	r.open()
}

// A process that goes on after the daemon was killed keeps the next one from undoing under its hands, not for ever.
func TestProcessOfAnEarlierDaemon(t *testing.T) {
	t.Parallel()
	pools := &folderPools{fail: map[string]error{}}
	r := newRig(t, pools.use)
	pools.dir = r.path("pool")
	v := r.create(api.CreateRequest{Name: "v", Pool: "default"})
	pools.fail["find"] = errors.New("later")
	if _, err := r.Delete(ctx, "v", api.DeleteRequest{}); err == nil {
		t.Fatal("deleted")
	}
	delete(pools.fail, "find")
	f, err := os.OpenFile(r.program.makingPath(v.UUID), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	r.reopen()
	if l := r.List(); len(l) != 1 || !strings.Contains(l[0].Error, "earlier daemon") {
		t.Errorf("after %v: %+v", time.Since(begin), l)
	}
	f.Close()
	r.delete("v")
}

// The program itself was killed, between any two of its steps: whatever it left under the volume's temporary name.
func TestProgramKilledWhileDeleting(t *testing.T) {
	for what, leave := range map[string]func(t *testing.T, r *rig, tmp string){
		"nothing done":  func(*testing.T, *rig, string) {},
		"header erased": func(t *testing.T, r *rig, tmp string) { wipe(t, tmp) },
		"gone": func(t *testing.T, r *rig, tmp string) {
			if err := os.Remove(tmp); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t)
			r.create(api.CreateRequest{Name: "v"})
			e := ready(t, r, "v")
			e.State = catalogue.Deleting
			if err := errors.Join(r.cat.Update(e), setAside(e)); err != nil {
				t.Fatal(err)
			}
			leave(t, r, temporary(e.Store, e.UUID))
			r.reopen()
			wants(t, "left", append(tree(t, r.path("stores")), tree(t, r.path("state/volumes"))...), nil)
		})
	}
}

func wipe(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, mib), 0); err != nil {
		t.Fatal(err)
	}
}

// A store that turns out to be in use gets its name back, and the volume is as it was.
func TestSetAsideWhileServed(t *testing.T) {
	r := newRig(t)
	v := r.create(api.CreateRequest{Name: "v"})
	s := serve(t, r, "v")
	_, err := r.Delete(ctx, "v", api.DeleteRequest{})
	refused(t, err, ErrInUse)
	wants(t, "stores", tree(t, r.path("stores")), []string{"v.vcow"})
	e := ready(t, r, "v")
	e.State = catalogue.Deleting
	if err := errors.Join(r.cat.Update(e), setAside(e)); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	wants(t, "stores", tree(t, r.path("stores")), []string{"v.vcow"})
	if e := ready(t, r, "v"); e.UUID != v.UUID {
		t.Errorf("%+v", e)
	}
	s.stop()
	if got, err := r.Show(ctx, "v"); err != nil || got != v {
		t.Errorf("%+v %v", got, err)
	}
	r.delete("v")
}
