package domainxml

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/durable"
)

// maxState is how large all of a domain's state may be, bytes. NVRAM has half a MiB or so, a TPM less.
const maxState = 16 << 20

// The names of state in a backup: the NVRAM's, and what those of the TPM's files begin with.
const (
	nvramName = "nvram"
	tpmPrefix = "tpm/"
)

// ReadState reads what is at a domain's places: nvram, and tpm/NAME for each file of the TPM. What is not there is not
// there: the domain never ran. While the guest runs it may write its NVRAM and its TPM, as its disks; swtpm replaces its
// file in one.
func ReadState(p Places) (map[string][]byte, error) {
	files, left := map[string][]byte{}, int64(maxState)
	if p.NVRAM != "" {
		if err := readFile(p.NVRAM, nvramName, files, &left); err != nil {
			return nil, fmt.Errorf("the NVRAM: %w", err)
		}
	}
	if p.TPM == "" {
		return files, nil
	}
	entries, err := os.ReadDir(p.TPM)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the TPM's state: %w", err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || strings.HasPrefix(e.Name(), ".") { // swtpm's lock begins with a dot
			continue
		}
		if err := readFile(filepath.Join(p.TPM, e.Name()), tpmPrefix+e.Name(), files, &left); err != nil {
			return nil, fmt.Errorf("the TPM's state: %w", err)
		}
	}
	return files, nil
}

// readFile reads a file or block device into files, if it is there and is not more than left.
func readFile(path, name string, files map[string][]byte, left *int64) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() && st.Mode().Type() != fs.ModeDevice {
		return fmt.Errorf("%s is neither a file nor a block device", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, *left+1))
	if err != nil {
		return err
	}
	if *left -= int64(len(b)); *left < 0 {
		return fmt.Errorf("%s: a domain's state has more than %d bytes", path, maxState)
	}
	files[name] = b
	return nil
}

// WriteState puts state back at the places of a domain that is off, durably. libvirt gives the files to those who need them
// when the domain starts. Unless replace is set nothing may be there yet: fs.ErrExist. Names that are none of ReadState's are
// refused before anything is written, and so is state without a place.
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
