package domainxml

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteState(t *testing.T) {
	dir := t.TempDir()
	p := Places{NVRAM: filepath.Join(dir, "a_VARS.fd"), TPM: filepath.Join(dir, "a", "tpm2")}
	has := func(path, want string) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil || string(b) != want {
			t.Errorf("%s has %q, %v", path, b, err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Error(path, err)
		}
	}
	keys := filepath.Join(p.TPM, "tpm2-00.permall")
	if err := WriteState(p, map[string][]byte{"nvram": []byte("vars"), "tpm/tpm2-00.permall": []byte("keys")}, false); err != nil {
		t.Fatal(err)
	}
	has(p.NVRAM, "vars")
	has(keys, "keys")
	if err := WriteState(p, map[string][]byte{"tpm/new": nil, "nvram": []byte("other")}, false); !errors.Is(err, fs.ErrExist) {
		t.Fatal("overwritten:", err)
	}
	has(p.NVRAM, "vars")
	if _, err := os.Stat(filepath.Join(p.TPM, "new")); err == nil {
		t.Error("half written")
	}
	if err := CheckState(p, nil, false); !errors.Is(err, fs.ErrExist) {
		t.Error("a guest without state would find another's:", err)
	}
	if err := WriteState(p, map[string][]byte{"nvram": []byte("other"), "tpm/new": []byte("others")}, true); err != nil {
		t.Fatal(err)
	}
	has(p.NVRAM, "other")
	has(filepath.Join(p.TPM, "new"), "others")
	if at, err := StateAt(p); err != nil || len(at) != 2 {
		t.Error("the old TPM's state is there still:", at, err)
	}
	if err := WriteState(p, nil, true); err != nil {
		t.Fatal(err)
	}
	if at, err := StateAt(p); err != nil || len(at) != 0 {
		t.Error("a guest without state has another's:", at, err)
	}
	if err := os.Mkdir(filepath.Join(p.TPM, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteState(p, nil, true); err == nil {
		t.Error("a folder among the TPM's files")
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
	for _, p := range []Places{{}, {NVRAM: "nvram", TPM: "tpm"}, {NVRAM: "/dev/null"}} {
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
