package plugin

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestProviderAnswers(t *testing.T) {
	for _, c := range []struct {
		name, script string
		path, err    string // of Create; part of the error
	}{
		{name: "good", script: `echo '{"path":"/dev/mapper/lun1","size":4096}'`, path: "/dev/mapper/lun1"},
		{name: "larger, unknown fields, spaces", script: `printf '\n {"x":[1],"path":"/a/b","size":8192} \n\n'`, path: "/a/b"},
		{name: "noise on stderr", script: `echo hello >&2; echo '{"path":"/a/b","size":4096}'`, path: "/a/b"},
		{name: "too small", script: `echo '{"path":"/a/b","size":4095}'`, err: "asked for 4096 bytes it made 4095"},
		{name: "no size", script: `echo '{"path":"/a/b"}'`, err: "asked for 4096 bytes"},
		{name: "negative size", script: `echo '{"path":"/a/b","size":-1}'`, err: "-1 bytes"},
		{name: "size is text", script: `echo '{"path":"/a/b","size":"4096"}'`, err: "not what it should be"},
		{name: "huge size", script: `echo '{"path":"/a/b","size":1e99}'`, err: "not what it should be"},
		{name: "no path", script: `echo '{"size":4096}'`, err: "no path"},
		{name: "relative", script: `echo '{"path":"a/b","size":4096}'`, err: "absolute"},
		{name: "not clean", script: `echo '{"path":"/a/../b","size":4096}'`, err: "absolute"},
		{name: "kernel's name", script: `echo '{"path":"/dev/sdb","size":4096}'`, err: "next boot"},
		{name: "kernel's name, dm", script: `echo '{"path":"/dev/dm-3","size":4096}'`, err: "next boot"},
		{name: "kernel's name, nvme", script: `echo '{"path":"/dev/nvme0n1","size":4096}'`, err: "next boot"},
		{name: "line break", script: `printf '%s' '{"path":"/a\nb","size":4096}'`, err: "is no path"},
		{name: "zero byte", script: `printf '%s' '{"path":"/a\u0000b","size":4096}'`, err: "is no path"},
		{name: "nothing", script: `exit 0`, err: "not a JSON object"},
		{name: "an array", script: `echo '[]'`, err: "not a JSON object"},
		{name: "null", script: `echo null`, err: "not a JSON object"},
		{name: "two documents", script: `echo '{"path":"/a/b","size":4096}{}'`, err: "behind"},
		{name: "half a document", script: `printf '{"path":"/a/b","si'`, err: "not what it should be"},
		{name: "garbage", script: `head -c 1000 /dev/urandom`, err: "the answer is not"},
		{name: "huge", script: `printf '{"path":"/a'; exec yes`, err: errFlood.Error()},
		{name: "good, but failed", script: `echo '{"path":"/a/b","size":4096}'; echo no room >&2; exit 3`, err: "no room (exit status 3)"},
		{name: "killed", script: `kill -KILL $$`, err: "signal: killed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, deadline)
			s.provider("san", c.script)
			p, err := s.runner.Provider("san")
			if err != nil {
				t.Fatal(err)
			}
			path, err := p.Create(t.Context(), "v1", 4096)
			if c.err == "" {
				if err != nil || path != c.path {
					t.Errorf("got %q, %v", path, err)
				}
				return
			}
			if !errors.Is(err, ErrProvider) || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), "san: create v1") {
				t.Errorf("got %q, %v; want %s", path, err, c.err)
			}
			if s.runner.Failures() != 1 {
				t.Errorf("%d failures", s.runner.Failures())
			}
		})
	}
}

func TestProviderOperations(t *testing.T) {
	s := newSite(t, deadline)
	s.provider("san", `cat >$S/doc
case $1 in
capabilities) echo '{"kind":"provider","schema":1,"description":"a test"}' ;;
resolve) if [ -e $S/there ]; then echo '{"path":"/a/b"}'; else echo '{"missing":true}'; fi ;;
delete) ;;
*) exit 1 ;;
esac`)
	p, err := s.runner.Provider("san")
	if err != nil {
		t.Fatal(err)
	}
	if c, err := p.Capabilities(t.Context()); err != nil || c.Schema != 1 || c.Description != "a test" {
		t.Errorf("capabilities: %+v, %v", c, err)
	}
	if _, err := p.Resolve(t.Context(), "v1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("resolve: %v", err)
	}
	if s.runner.Failures() != 0 {
		t.Error("that a store is missing is no failure")
	}
	s.script(filepath.Join(s.state, "there"), "")
	if path, err := p.Resolve(t.Context(), "v1"); err != nil || path != "/a/b" {
		t.Errorf("resolve: %s, %v", path, err)
	}
	if err := p.Delete(t.Context(), "v1", "/a/b"); err != nil {
		t.Error(err)
	}
	if doc := s.trace("doc"); !strings.Contains(doc, `"event":"delete"`) || !strings.Contains(doc, `"store":{"name":"v1","path":"/a/b"}`) {
		t.Errorf("document of delete: %s", doc)
	}
	for _, name := range []string{"", "../x", "a/b", "a b", "-x"} {
		if _, err := p.Create(t.Context(), name, 4096); err == nil || errors.Is(err, ErrProvider) {
			t.Errorf("create %q: %v", name, err)
		}
		if _, err := s.runner.Provider(name); err == nil {
			t.Errorf("provider %q is there", name)
		}
	}
	if _, err := s.runner.Provider("none"); !errors.Is(err, ErrNoProvider) {
		t.Errorf("got %v", err)
	}
}

func TestProviderTimeout(t *testing.T) {
	s := newSite(t, time.Second)
	s.provider("san", "sleep 600 & wait")
	p, err := s.runner.Provider("san")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Resolve(t.Context(), "v1"); !errors.Is(err, ErrProvider) || !errors.Is(err, errTimeout) || errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Resolve(ctx, "v1"); !errors.Is(err, context.Canceled) || errors.Is(err, ErrProvider) {
		t.Errorf("got %v", err)
	}
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		`{"path":"/dev/mapper/x","size":4096}`, `{"missing":true}`, `{"kind":"provider","schema":1}`, `{}`, `[]`, `{"path":"/dev/sda1"}`,
		"{\"path\":\"/\xff\"}", `{"size":1e400}`, `{"path":"/a"} x`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b)
		if err != nil {
			return
		}
		if a.Size < 0 {
			t.Errorf("size %d", a.Size)
		}
		if checkPath(a.Path) != nil {
			return
		}
		if p := a.Path; !filepath.IsAbs(p) || filepath.Clean(p) != p || len(p) > maxPath || strings.ContainsAny(p, "\x00\n\x1b") {
			t.Errorf("path %q passed", p)
		}
	})
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("one\ntwo"), 3)
	f.Add(bytes.Repeat([]byte("x"), 3*maxLine), 7)
	f.Fuzz(func(t *testing.T, b []byte, step int) {
		step = max(step%4096, 1)
		n := 0
		l := lines{log: func(s string) {
			if n++; len(s) > maxLine || strings.ContainsAny(s, "\n\x1b\x00") || s == "" {
				t.Errorf("line %q", s)
			}
		}}
		for len(b) > 0 {
			k := min(step, len(b))
			l.Write(b[:k])
			b = b[k:]
		}
		l.end()
		if n > maxLines {
			t.Errorf("%d lines", n)
		}
	})
}
