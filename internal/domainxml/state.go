package domainxml

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/virt-cow/virt-cow/internal/durable"
)

// The names of state in a backup (api.Manifest.Files): the NVRAM's, and what those of the TPM's files begin with.
const (
	nvramName = "nvram"
	tpmPrefix = "tpm/"
)

// Of is the place, "" for none, of what has this name in a backup (api.Manifest.Files); false for what is no state.
func (p Places) Of(name string) (string, bool) {
	switch {
	case name == nvramName:
		return p.NVRAM, true
	case strings.HasPrefix(name, tpmPrefix):
		return p.TPM, true
	}
	return "", false
}

// CheckState says why WriteState would refuse files of these names, and changes nothing.
func CheckState(p Places, names []string, replace bool) error {
	_, _, err := plan(p, names, replace)
	return err
}

// WriteState puts the state of a backup back at the places of a domain that is off, durably. libvirt gives the files to those who need them
// when the domain starts. Afterwards the places hold that and nothing else: what else is there was another domain's, and goes
// if replace is set; else nothing may be there yet: fs.ErrExist. State without a place, or with a name that is none, is refused
// before anything is written.
func WriteState(p Places, files map[string][]byte, replace bool) error {
	paths, old, err := plan(p, slices.Collect(maps.Keys(files)), replace)
	if err != nil {
		return err
	}
	for name, path := range paths {
		mode := fs.FileMode(0o755)
		if name != nvramName {
			mode = 0o711 // as libvirt makes the TPM's
		}
		if err := durable.MakeDirs(filepath.Dir(path), mode); err != nil {
			return err
		}
		if err := durable.Replace(path, files[name], 0o600); err != nil {
			return err
		}
	}
	written := slices.Collect(maps.Values(paths))
	for _, path := range old {
		if slices.Contains(written, path) {
			continue
		}
		if err := durable.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// plan is where state of these names goes, and what is at the places and has to go.
func plan(p Places, names []string, replace bool) (paths map[string]string, old []string, err error) {
	paths = map[string]string{}
	for _, name := range names {
		if paths[name], err = statePath(p, name); err != nil {
			return nil, nil, err
		}
	}
	there, err := StateAt(p)
	if err != nil {
		return nil, nil, err
	}
	if len(there) > 0 && !replace {
		return nil, nil, fmt.Errorf("%s: %w: it is another domain's, or what is left of one", there[0], fs.ErrExist)
	}
	return paths, there, nil
}

// StateAt are the files with state that are at the places now: the NVRAM first, if it is a file, then the TPM's.
func StateAt(p Places) ([]string, error) {
	var there []string
	if p.NVRAM != "" {
		if st, err := os.Lstat(p.NVRAM); err == nil && st.Mode()&os.ModeDevice == 0 {
			there = append(there, p.NVRAM)
		}
	}
	if p.TPM == "" {
		return there, nil
	}
	entries, err := os.ReadDir(p.TPM)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(p.TPM, e.Name())
		if e.IsDir() {
			return nil, fmt.Errorf("%s: a folder, where only a TPM's files should be", path)
		}
		there = append(there, path)
	}
	return there, nil
}

// statePath is where state of this name belongs.
func statePath(p Places, name string) (string, error) {
	file, tpm := strings.CutPrefix(name, tpmPrefix)
	switch {
	case name == nvramName && absolute(p.NVRAM):
		if st, err := os.Stat(p.NVRAM); err == nil && !st.Mode().IsRegular() {
			return "", fmt.Errorf("the NVRAM: %s is no file: write it there by hand", p.NVRAM)
		}
		return p.NVRAM, nil
	case tpm && absolute(p.TPM) && file != "" && !strings.HasPrefix(file, ".") && !strings.ContainsAny(file, "/\x00"):
		return filepath.Join(p.TPM, file), nil
	}
	return "", fmt.Errorf("state %q: the domain has no place for it", name)
}
