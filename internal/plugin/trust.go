package plugin

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxLinks bounds the links followed to one file.
const maxLinks = 8

// trusted follows a path, link by link, and returns where it leads. It returns ErrRefused if anybody but root or
// the user who runs us could make it lead elsewhere or change what is there: then nothing can be swapped between
// this check and what is done with the result.
func trusted(path string) (string, error) {
	todo, links, at := components(path), 0, "/"
	if err := checkOwner(at); err != nil {
		return "", err
	}
	for len(todo) > 0 {
		next := filepath.Join(at, todo[0])
		todo = todo[1:]
		if err := checkOwner(next); err != nil {
			return "", err
		}
		target, err := os.Readlink(next)
		if err != nil { // no link
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%w: %s: too many links", ErrRefused, path)
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		todo = append(components(target), todo...)
	}
	return at, nil
}

// components are the names of a path; a ".." stays, as it is to be taken after a link.
func components(path string) []string {
	return strings.FieldsFunc(path, func(c rune) bool { return c == '/' })
}

// checkOwner wants a file, folder or link that only root or we may change. In a sticky folder nobody may replace
// what is another's.
func checkOwner(path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	sys := st.Sys().(*syscall.Stat_t)
	if sys.Uid != 0 && int(sys.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: %s belongs to user %d, not to root: chown root %s", ErrRefused, path, sys.Uid, path)
	}
	sticky, link := st.IsDir() && st.Mode()&os.ModeSticky != 0, st.Mode()&os.ModeSymlink != 0
	if st.Mode().Perm()&0o022 != 0 && !sticky && !link {
		return fmt.Errorf("%w: %s can be written by others than its owner: chmod go-w %s", ErrRefused, path, path)
	}
	return nil
}
