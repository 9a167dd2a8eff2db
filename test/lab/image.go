package lab

import (
	"os"
	"path/filepath"
)

// Image is what an emulated machine boots from memory: Debian's kernel and a file system that is made for it.
type Image struct {
	Kernel string // path
	kernel kernel
	files  archive
}

// NewImage begins an image with a program /init. The error wraps ErrMissing where there is no kernel.
func NewImage(init string) (*Image, error) {
	k, err := findKernel()
	if err != nil {
		return nil, err
	}
	i := &Image{Kernel: k.image, kernel: k}
	i.files.file("/init", 0o755, []byte(init))
	return i, nil
}

// Program adds a program of this machine, found on the path if it is but a name, and the libraries it is linked with.
// Those in the folder libraries, if not "", go before the machine's own.
func (i *Image) Program(name, from, libraries string) error {
	if filepath.Base(from) == from {
		from = mustLook(from)
	}
	return i.files.program(name, from, libraries)
}

// Modules adds modules of the kernel and what they need, once. /modules lists them in the order of loading, a path a line.
func (i *Image) Modules(names ...string) error { return addModules(&i.files, i.kernel, names) }

// WriteInitramfs writes the file system as the kernel takes it.
func (i *Image) WriteInitramfs(path string) error { return os.WriteFile(path, i.files.bytes(), 0o600) }
