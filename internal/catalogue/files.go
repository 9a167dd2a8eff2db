package catalogue

import (
	"errors"
	"os"

	"github.com/virt-cow/virt-cow/internal/durable"
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

func (disk) create(path string, b []byte) error { return durable.Create(path, b, 0o640) }

func (disk) rename(from, to string) error { return os.Rename(from, to) }

func (disk) remove(path string) error { return os.Remove(path) }

func (disk) syncDir(dir string) error { return durable.SyncDir(dir) }

func (disk) makeDirs(dir string) error { return durable.MakeDirs(dir, 0o750) }
