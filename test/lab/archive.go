package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// archive is a cpio archive in the kernel's "newc" format
// (https://docs.kernel.org/driver-api/early-userspace/buffer-format.html).
type archive struct {
	buf  bytes.Buffer
	ino  int
	dirs map[string]bool
	libs map[string]bool
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

// program adds a program of this machine and the libraries it is linked with, each once. Libraries in the folder
// libraries, if not "", go before the machine's own.
func (a *archive) program(name, from, libraries string) error {
	if err := a.copy(name, from); err != nil {
		return err
	}
	cmd := exec.Command("ldd", from)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "LD_LIBRARY_PATH="+libraries)
	out, err := cmd.CombinedOutput()
	if err != nil && !strings.Contains(string(out), "not a dynamic executable") {
		return fmt.Errorf("ldd %s: %w: %s", from, err, out)
	}
	if missing := missingLibrary.FindString(string(out)); missing != "" {
		return fmt.Errorf("%w: %s: %s: run scripts/deps.sh", ErrMissing, from, missing)
	}
	for _, l := range library.FindAllString(string(out), -1) {
		to := l
		if libraries != "" && filepath.Dir(l) == libraries {
			to = filepath.Join("/lib", filepath.Base(l))
		}
		if a.libs[to] {
			continue
		}
		if a.libs == nil {
			a.libs = map[string]bool{}
		}
		a.libs[to] = true
		if err := a.copy(to, l); err != nil {
			return err
		}
	}
	return nil
}

// What ldd prints.
var (
	library        = regexp.MustCompile(`/\S*lib\S*`)
	missingLibrary = regexp.MustCompile(`\S+ => not found`)
)

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
