package lab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// archive is a cpio archive in the kernel's "newc" format
// (https://docs.kernel.org/driver-api/early-userspace/buffer-format.html).
type archive struct {
	buf  bytes.Buffer
	ino  int
	dirs map[string]bool
}

// file adds a file and the folders it is in.
func (a *archive) file(name string, mode os.FileMode, data []byte) {
	name = strings.TrimPrefix(name, "/")
	a.folder(filepath.Dir(name))
	a.entry(name, 0o100000|int(mode.Perm()), data)
}

func (a *archive) folder(name string) {
	if name == "." || a.dirs[name] {
		return
	}
	a.folder(filepath.Dir(name))
	if a.dirs == nil {
		a.dirs = map[string]bool{}
	}
	a.dirs[name] = true
	a.entry(name, 0o040755, nil)
}

// copy adds a program or file of this machine.
func (a *archive) copy(name, from string) error {
	if !filepath.IsAbs(from) {
		from = mustLook(from)
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	a.file(name, 0o755, b)
	return nil
}

func (a *archive) entry(name string, mode int, data []byte) {
	a.ino++
	// magic, inode, mode, uid, gid, links, mtime, size, four device numbers, length of the name, check
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.buf.WriteString(name + "\x00")
	a.pad()
	a.buf.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

// bytes ends the archive.
func (a *archive) bytes() []byte {
	a.entry("TRAILER!!!", 0, nil)
	return a.buf.Bytes()
}
