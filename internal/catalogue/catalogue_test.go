package catalogue

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func entry(i int) Entry {
	return Entry{
		Name: fmt.Sprintf("v%05d", i), UUID: fmt.Sprintf("3f2a9c1e-0000-4000-8000-%012d", i), State: Ready,
		Store: fmt.Sprintf("/stores/v%05d.vcow", i), Role: "clone", Size: 1 << 30, ChunkSize: 4096,
		Master: "raw:/masters/m.raw", Created: 1700000000,
	}
}

func open(t *testing.T, dir string) *Catalogue {
	t.Helper()
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestCatalogue(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	c := open(t, dir)
	e := entry(1)
	if err := c.Add(e); err != nil {
		t.Fatal(err)
	}
	sameName, sameUUID, sameStore := entry(2), entry(2), entry(2)
	sameName.Name, sameUUID.UUID, sameStore.Store = e.Name, e.UUID, e.Store
	for what, bad := range map[string]Entry{"name": sameName, "UUID": sameUUID, "store": sameStore} {
		if err := c.Add(bad); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), e.Name) {
			t.Errorf("same %s: %v", what, err)
		}
	}
	if err := c.Update(entry(2)); !errors.Is(err, ErrNotFound) {
		t.Errorf("update of nothing: %v", err)
	}
	if err := c.Mend(e); !errors.Is(err, ErrNotFound) {
		t.Errorf("mending what is whole: %v", err)
	}
	if err := c.Remove("nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("remove of nothing: %v", err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrBusy) {
		t.Errorf("opened twice: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir)
	if got, err := c.ByName(e.Name); err != nil || got != e {
		t.Errorf("%+v %v", got, err)
	}
	if got, ok := c.ByUUID(e.UUID); !ok || got != e {
		t.Errorf("by UUID: %+v", got)
	}
	if got, ok := c.ByStore(e.Store); !ok || got != e {
		t.Errorf("by store: %+v", got)
	}
	// A store is where another one's was that is missing now; then they have changed places.
	e.State = Missing
	other := entry(2)
	other.Store = e.Store
	if err := errors.Join(c.Update(e), c.Add(other)); err != nil {
		t.Fatal(err)
	}
	e.State, e.Store = Ready, "/elsewhere"
	if err := c.Update(e); err != nil {
		t.Fatal(err)
	}
	if got, _ := c.ByStore(other.Store); got != other {
		t.Errorf("by store: %+v", got)
	}
	// Who has read it before it was changed changes nothing.
	stale, late := e, e
	stale.State, late.State = Missing, Deleting
	if err := c.Replace(stale, late); !errors.Is(err, ErrChanged) {
		t.Errorf("replaced what was changed meanwhile: %v", err)
	}
	if got, err := c.ByName(e.Name); err != nil || got != e {
		t.Errorf("%+v %v", got, err)
	}
	if err := c.Replace(e, late); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(other.Name); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.ByStore(other.Store); ok || c.Len() != 1 {
		t.Error("removed, and still there")
	}
}

func TestDamagedRecords(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	for i := range 3 {
		if err := c.Add(entry(i)); err != nil {
			t.Fatal(err)
		}
	}
	good, err := os.ReadFile(c.path("v00001"))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, volumesDir, name+suffix), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	is := func(from, to string) string {
		if !strings.Contains(string(good), from) {
			t.Fatalf("no %q in %s", from, good)
		}
		return strings.Replace(string(good), from, to, 1)
	}
	bad := map[string]string{
		"empty": "", "half": string(good[:len(good)/2]), "array": "[]", "garbage": "\x00\xff", "deep": strings.Repeat("[", 60000),
		"version": is(`"version": 1`, `"version": 2`), "unknown": is(`"version": 1`, `"version": 1, "new": 1`),
		"two": string(good) + "{}", "othername": string(good), "uuid": is("3f2a9c1e", "3F2A9C1E"), "state": is(`"ready"`, `"fine"`),
		"ztwin": is("v00001.vcow", "ztwin.vcow"),
		"store": is(`"/stores`, `"stores`), "dots": is(`"/stores/`, `"/stores/../`), "role": is(`"clone"`, `"snapshot"`),
		"size": is("1073741824", "-1"), "large": is("raw:", "raw:"+strings.Repeat("x", maxRecord)),
		"has space": strings.ReplaceAll(string(good), "v00001", "has space"),
	}
	for name, content := range bad {
		write(name, strings.ReplaceAll(content, `"name": "v00001"`, `"name": "`+map[bool]string{true: "v00001", false: name}[name == "othername"]+`"`))
	}
	if err := unix.Mkfifo(filepath.Join(dir, volumesDir, "fifo"+suffix), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x.json.new", "note.txt"} {
		if err := os.WriteFile(filepath.Join(dir, volumesDir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c = open(t, dir)
	if got := c.All(); len(got) != 3 || got[1] != entry(1) {
		t.Errorf("the good ones: %+v", got)
	}
	damaged := map[string]Damage{}
	for _, d := range c.Damaged() {
		damaged[d.Name] = d
	}
	for _, name := range append([]string{"fifo"}, keys(bad)...) {
		d, ok := damaged[name]
		if !ok || !errors.Is(d.Err, ErrDamaged) || !strings.Contains(d.Err.Error(), d.File) {
			t.Errorf("%s: %+v", name, d)
		}
		if _, err := c.ByName(name); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: found: %v", name, err)
		}
		e := entry(9)
		e.Name = name
		if err := c.Add(e); err == nil {
			t.Errorf("%s: overwritten", name)
		}
	}
	if len(damaged) != len(bad)+1 || c.Len() != 3+len(damaged) {
		t.Errorf("%d damaged", len(damaged))
	}
	if _, err := os.Lstat(filepath.Join(dir, volumesDir, "x.json.new")); err == nil {
		t.Error("a temporary file is left")
	}
	e := entry(9)
	e.Name = "half"
	if err := c.Mend(e); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if got, err := open(t, dir).ByName("half"); err != nil || got != e {
		t.Errorf("mended: %+v %v", got, err)
	}
}

func keys(m map[string]string) (all []string) {
	for k := range m {
		all = append(all, k)
	}
	return all
}

func TestTenThousandVolumes(t *testing.T) {
	dir := t.TempDir()
	if err := (disk{}).makeDirs(filepath.Join(dir, volumesDir)); err != nil {
		t.Fatal(err)
	}
	const n = 10000
	for i := range n {
		b, err := encode(entry(i))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, volumesDir, entry(i).Name+suffix), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	c := open(t, dir)
	t.Logf("%d records read in %v", n, time.Since(begin))
	if time.Since(begin) > time.Minute {
		t.Error("takes over a minute")
	}
	begin = time.Now()
	all := c.All()
	t.Logf("listed in %v", time.Since(begin))
	if len(all) != n || all[n-1] != entry(n-1) {
		t.Fatalf("%d read", len(all))
	}
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for k := range 20 {
				e := entry(n + i*100 + k)
				if err := c.Add(e); err != nil {
					t.Error(err)
				}
				if got, ok := c.ByUUID(e.UUID); !ok || got != e {
					t.Error("not found again")
				}
				if k%2 == 0 {
					if err := c.Remove(e.Name); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	group.Wait()
	if c.Len() != n+80 {
		t.Errorf("%d volumes", c.Len())
	}
}

const childDir = "VIRT_COW_TEST_CATALOGUE"

// TestMain is the child of TestKilled too: it changes a catalogue until it is killed, and says what it has done.
func TestMain(m *testing.M) {
	dir := os.Getenv(childDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	c, err := Open(dir)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	e := entry(1)
	if _, lost := c.ByName(e.Name); lost != nil {
		err = c.Add(e)
	}
	for i := int64(1); err == nil; i++ {
		e.Created = i
		err = c.Update(e)
		fmt.Println(i)
	}
	fmt.Println(err)
	os.Exit(1)
}

// A process killed at any moment leaves the last acknowledged record or the one it was writing, and no lock.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	for round := range 20 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		said, err := os.Create(filepath.Join(t.TempDir(), "said"))
		if err != nil {
			t.Fatal(err)
		}
		defer said.Close()
		cmd.Stdout = said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); round >= 10; time.Sleep(time.Millisecond) { // at a moment after its first
			if i, err := said.Stat(); err != nil || i.Size() > 0 || time.Now().After(end) {
				break
			}
		}
		time.Sleep(time.Duration(20+round*3) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		out, err := os.ReadFile(said.Name())
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
		var last int64
		if n, _ := fmt.Sscan(lines[len(lines)-1], &last); n == 0 {
			if round >= 10 {
				t.Error("killed before its first record: this proves nothing")
			}
			continue
		}
		c, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		e, err := c.ByName(entry(1).Name)
		if err != nil || e.Created != last && e.Created != last+1 {
			t.Fatalf("acknowledged %d, found %+v, %v", last, e, err)
		}
		c.Close()
	}
}

func FuzzDecode(f *testing.F) {
	b, _ := encode(entry(1))
	f.Add(b)
	f.Add([]byte(`{"version":1,"name":"a","uuid":"3f2a9c1e-0000-4000-8000-000000000001","state":"creating"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decode(b)
		if err != nil {
			return
		}
		again, err := encode(e)
		if err != nil {
			t.Skip() // grew over the limit by its escapes
		}
		if back, err := decode(again); err != nil || back != e {
			t.Fatalf("%q\n%+v\n%+v %v", b, e, back, err)
		}
	})
}
