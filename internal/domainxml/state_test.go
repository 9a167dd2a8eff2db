package domainxml

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

func TestStateThereAndBack(t *testing.T) {
	dir := t.TempDir()
	from := Places{NVRAM: filepath.Join(dir, "a_VARS.fd"), TPM: filepath.Join(dir, "a", "tpm2")}
	if files, err := ReadState(from); err != nil || len(files) != 0 {
		t.Fatal("of a domain that never ran:", files, err)
	}
	want := map[string][]byte{"nvram": []byte("vars"), "tpm/tpm2-00.permall": []byte("keys"), "tpm/tpm2-00.volatilestate": []byte("now")}
	if err := WriteState(from, want, false); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from.TPM, ".lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadState(from)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatal(got, err)
	}
	for _, path := range []string{from.NVRAM, filepath.Join(from.TPM, "tpm2-00.permall")} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Error(st.Mode(), err)
		}
	}
	if err := WriteState(from, map[string][]byte{"tpm/new": nil, "nvram": []byte("other")}, false); !errors.Is(err, fs.ErrExist) {
		t.Fatal("overwritten:", err)
	}
	if got, err := ReadState(from); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatal("half written:", got, err)
	}
	if err := WriteState(from, map[string][]byte{"nvram": []byte("other")}, true); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(from.NVRAM); err != nil || string(b) != "other" {
		t.Fatal(string(b), err)
	}
}

func TestStateWithoutAPlace(t *testing.T) {
	dir := t.TempDir()
	p := Places{NVRAM: filepath.Join(dir, "nvram"), TPM: filepath.Join(dir, "tpm2")}
	for _, name := range []string{"", "x", "tpm/", "tpm/../x", "tpm/a/b", "tpm/.lock", "tpm/..", "/etc/passwd", "../nvram", "tpm/a\x00b"} {
		if err := WriteState(p, map[string][]byte{"nvram": nil, name: nil}, true); err == nil {
			t.Errorf("%q was written", name)
		}
	}
	for _, p := range []Places{{}, {NVRAM: "nvram", TPM: "tpm"}} {
		for _, name := range []string{"nvram", "tpm/a"} {
			if err := WriteState(p, map[string][]byte{name: nil}, true); err == nil {
				t.Errorf("%q was written to %+v", name, p)
			}
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Error("something was written:", entries, err)
	}
}

// TestStateIsAFile: what is read goes into a backup, so nothing else that may stand at its place does.
func TestStateIsAFile(t *testing.T) {
	dir := t.TempDir()
	secret, link, fifo, big := filepath.Join(dir, "secret"), filepath.Join(dir, "link"), filepath.Join(dir, "fifo"), filepath.Join(dir, "big")
	if err := errors.Join(os.WriteFile(secret, nil, 0o600), os.Symlink(secret, link), syscall.Mkfifo(fifo, 0o600),
		os.WriteFile(big, nil, 0o600), os.Truncate(big, maxState+1)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, fifo, dir, big, "/dev/null"} {
		if _, err := ReadState(Places{NVRAM: path}); err == nil || !strings.Contains(err.Error(), "NVRAM") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := WriteState(Places{NVRAM: "/dev/null"}, map[string][]byte{"nvram": nil}, true); err == nil {
		t.Error("a device was replaced by a file")
	}
}
