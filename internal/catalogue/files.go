package catalogue

import (
	"errors"
	"os"
	"path/filepath"
)

// files is what the catalogue asks of a file system.
type files interface {
	list(dir string) ([]string, error) // names of its files
	read(path string) ([]byte, error)
	create(path string, b []byte) error // writes a file and syncs it
	rename(from, to string) error
	remove(path string) error
	syncDir(dir string) error
}

// disk is the operating system's.
type disk struct{}

func (disk) list(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

func (disk) read(path string) ([]byte, error) {
	switch st, err := os.Lstat(path); { // opening a FIFO would hang
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, errors.New("not a regular file")
	case st.Size() > maxRecord:
		return nil, errors.New("too large")
	}
	return os.ReadFile(path)
}

func (disk) create(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (disk) rename(from, to string) error { return os.Rename(from, to) }

func (disk) remove(path string) error { return os.Remove(path) }

func (disk) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// makeDirs makes a folder and those above it, durably.
func (d disk) makeDirs(dir string) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := d.makeDirs(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return d.syncDir(parent)
}
