package domainxml

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/virt-cow/virt-cow/internal/durable"
)

// The names of state in a backup (api.Manifest.Files): the NVRAM's, and what those of the TPM's files begin with.
const (
	nvramName = "nvram"
	tpmPrefix = "tpm/"
)

// WriteState puts the state of a backup back at the places of a domain that is off, durably. libvirt gives the files to those who need them
// when the domain starts. Unless replace is set nothing may be there yet: fs.ErrExist. State without a
// place, or with a name that is none, is refused before anything is written.
func WriteState(p Places, files map[string][]byte, replace bool) error {
	paths := map[string]string{}
	for name := range files {
		path, err := statePath(p, name)
		if err != nil {
			return err
		}
		if _, err := os.Lstat(path); err == nil && !replace {
			return fmt.Errorf("%s: %w: it is another domain's, or what is left of one", path, fs.ErrExist)
		}
		paths[name] = path
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
	return nil
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
