package plugin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Entry is one file of a folder of plugins.
type Entry struct {
	Name string // the file's
	File string // its path
	Path string // what is run: the file, or where links from it lead
	Err  error  // why it is not run, nil if it is; wraps ErrRefused
	Off  bool   // with Err: it is no plugin at all, or switched off, so nobody is missed
}

// maxPluginName bounds the name of a plugin, in bytes.
const maxPluginName = 64

// others are the ends of names of what is not meant to be run: what editors and package managers keep, and the
// plugins' own configuration.
var others = []string{
	".conf", "~", ".bak", ".old", ".orig", ".rej", ".save", ".swp", ".tmp", ".disabled",
	".dpkg-old", ".dpkg-new", ".dpkg-dist", ".dpkg-tmp", ".ucf-old", ".ucf-new", ".ucf-dist", ".rpmsave", ".rpmnew", ".rpmorig",
}

// List reads a folder of plugins, in the order in which they are run: lexical, byte by byte. Dotfiles, backups,
// *.conf and folders are left out; a folder that does not exist is an empty one.
func List(dir string) ([]Entry, error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []Entry
	for _, f := range files {
		if f.IsDir() || skipped(f.Name()) {
			continue
		}
		e := examine(filepath.Join(dir, f.Name()))
		if errors.Is(e.Err, fs.ErrNotExist) && absent(filepath.Join(dir, f.Name())) {
			continue // removed this moment
		}
		list = append(list, e)
	}
	return list, nil
}

// absent is true if there is nothing at path, not even a link that leads nowhere.
func absent(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func skipped(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") {
		return true
	}
	for _, end := range others {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}

func examine(path string) Entry {
	e := Entry{Name: filepath.Base(path), File: path}
	if err := validName(e.Name); err != nil {
		e.Err, e.Off = err, true
		return e
	}
	if st, err := os.Stat(path); err == nil && (!st.Mode().IsRegular() || st.Mode().Perm()&0o111 == 0) {
		e.Err, e.Off = fmt.Errorf("%w: %s is not an executable file", ErrRefused, path), true
		return e
	}
	if e.Path, e.Err = trusted(path); e.Err != nil && !errors.Is(e.Err, ErrRefused) {
		e.Err = fmt.Errorf("%w: %w", ErrRefused, e.Err)
	}
	return e
}

// validName wants 1 to 64 of A-Z a-z 0-9 . _ - with a letter or digit first.
func validName(name string) error {
	ok := name != "" && len(name) <= maxPluginName
	for i := 0; ok && i < len(name); i++ {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.' || c == '_' || c == '-':
			ok = i > 0
		default:
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("%w: plugin name %q: use 1 to %d of A-Z a-z 0-9 . _ - with a letter or digit first",
			ErrRefused, name, maxPluginName)
	}
	return nil
}
