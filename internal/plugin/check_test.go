package plugin

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// checked runs Check and returns its kind and the names of what failed.
func (s *site) checked(path, kind string, timeout time.Duration) (string, []string) {
	s.t.Helper()
	var failed []string
	n := 0
	got, ok, err := Check(s.t.Context(), path, CheckConfig{
		Config: Config{Timeout: timeout, ProviderTimeout: timeout, Log: zerolog.New(s.log)}, Kind: kind, Size: 1 << 20,
		Report: func(r Result) {
			if n++; !r.OK {
				failed = append(failed, r.What)
				s.t.Logf("FAIL %s: %s", r.What, r.Detail)
			}
		},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if ok != (len(failed) == 0) || n == 0 {
		s.t.Errorf("ok %t with %d of %d failed", ok, len(failed), n)
	}
	return got, failed
}

// What each plugin does wrong is what its check says.
func TestCheckEvents(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, script string
		failed       []string // beginnings
	}{
		{name: "good", script: "cat >/dev/null"},
		{name: "a guard", script: `case $1 in attach | detach | delete) echo not here >&2; exit 1 ;; esac`},
		{name: "a guard that gives no reason", script: `case $1 in attach) exit 1 ;; esac`, failed: []string{"attach:"}},
		{name: "fails for what it does not know", script: `case $1 in a*|d*|c*|hydrated|e*|failed) exit 0;; esac; exit 1`,
			failed: []string{"an event of a later version"}},
		{name: "wants its schema", script: `[ "$1" != attached ] || grep -q '"schema":1,' || exit 1`,
			failed: []string{"a later schema"}},
		{name: "wants a volume", script: `[ "$1" != failed ] || grep -q '"volume"' || exit 1`, failed: []string{"an event without volume"}},
		{name: "loops on garbage", script: `read -r l; [ "$1" != attached ] || [ -n "$l" ] || while :; do sleep 1; done`,
			failed: []string{"nothing on stdin"}},
		{name: "dies on garbage", script: `read -r l; [ "$1" != attached ] || [ -n "$l" ] || kill -SEGV $$`,
			failed: []string{"nothing on stdin"}},
		{name: "floods", script: `[ "$1" != hydrated ] || exec yes`, failed: []string{"hydrated"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, deadline)
			timeout := deadline
			if strings.Contains(c.name, "loops") {
				timeout = 10 * time.Second
			}
			kind, failed := s.checked(s.plugin("a", c.script), "", timeout)
			if kind != KindEvent {
				t.Errorf("kind %s", kind)
			}
			same(t, failed, c.failed)
		})
	}
}

func same(t *testing.T, got, want []string) {
	t.Helper()
	ok := len(got) == len(want)
	for i := 0; ok && i < len(got); i++ {
		ok = strings.HasPrefix(got[i], want[i])
	}
	if !ok {
		t.Errorf("failed %q, want %q", got, want)
	}
}

// folderProvider is a provider without jq, with places for faults.
const folderProvider = `doc=$(cat)
name=$(echo "$doc" | tr -d ' \n' | sed -n 's/.*"store":{.*"name":"\([a-z0-9-]*\)".*/\1/p')
size=$(echo "$doc" | sed -n 's/.*"size":\([0-9]*\).*/\1/p')
path=$(echo "$doc" | sed -n 's/.*"store":{.*"path":"\([^"]*\)".*/\1/p')
f=$S/$name.lun
case $1 in
capabilities) echo '{"kind":"provider","schema":1}'; exit 0 ;;
create|resolve|delete) [ -n "$name" ] || exit 1 ;;
*) exit 1 ;;
esac
FAULT
case $1 in
create) [ ! -s $f ] || [ $(stat -c %s $f) -ge $size ] || exit 1
  truncate -s ">$size" $f; echo "{\"path\":\"$f\",\"size\":$(stat -c %s $f)}" ;;
resolve) if [ -e $f ]; then echo "{\"path\":\"$f\"}"; else echo '{"missing":true}'; fi ;;
delete) [ "$path" = "$f" ] || exit 1; rm -f $f ;;
esac`

func TestCheckProvider(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, fault string
		failed      []string
	}{
		{name: "good"},
		{name: "a new one each time", fault: `[ $1 != create ] || { f=$(mktemp $S/XXXXXX); truncate -s $size $f; echo "{\"path\":\"$f\",\"size\":$size}"; exit 0; }`,
			failed: []string{"create again", "resolve:", "resolve, a later", "delete with a path", "create of one name twice", "delete", "delete again"}},
		{name: "says more than it makes", fault: `[ $1 != create ] || { : >$f; echo "{\"path\":\"$f\",\"size\":$size}"; exit 0; }`,
			failed: []string{"what it made is there", "create of twice the size", "create after one that was killed"}},
		{name: "deletes whatever the path", fault: `[ $1 != delete ] || path=$f`, failed: []string{"delete with a path"}},
		{name: "does not delete", fault: `[ $1 != delete ] || exit 0`,
			failed: []string{"delete with a path", "resolve after delete", "nothing is left"}},
		{name: "delete is not idempotent", fault: `[ $1 != delete ] || [ -e $f ] || exit 1`, failed: []string{"delete again"}},
		{name: "fails for what is missing", fault: `[ $1 != resolve ] || [ -e $f ] || exit 1`,
			failed: []string{"resolve of what is not there", "resolve after delete", "nothing is left"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, deadline)
			kind, failed := s.checked(s.provider("san", strings.Replace(folderProvider, "FAULT", c.fault, 1)), "", deadline)
			if kind != KindProvider {
				t.Fatalf("kind %s", kind)
			}
			same(t, failed, c.failed)
			if left, _ := filepath.Glob(filepath.Join(s.state, "*.lun")); len(left) != 0 && len(c.failed) == 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestCheckRefused(t *testing.T) {
	s := newSite(t, deadline)
	path := s.plugin("a", "touch $S/ran")
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	_, failed := s.checked(path, "", deadline)
	same(t, failed, []string{"may be run"})
	if _, err := os.Stat(filepath.Join(s.state, "ran")); err == nil {
		t.Error("it was run")
	}
	if _, _, err := Check(t.Context(), filepath.Join(s.dir, "none"), CheckConfig{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	// A check that is interrupted deletes what it made.
	ctx, cancel := context.WithCancel(t.Context())
	path = s.provider("san", strings.Replace(folderProvider, "FAULT", "", 1))
	_, _, err := Check(ctx, path, CheckConfig{Config: Config{Log: zerolog.Nop()}, Report: func(r Result) {
		if r.What == "create" {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.state, "*.lun")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
