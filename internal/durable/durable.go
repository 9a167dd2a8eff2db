// Package durable writes small files so that after a crash or a power cut each is the old one or the new one, whole.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// NewSuffix is what the name of a file ends with while it is being written. What is found with it after a crash is no good.
const NewSuffix = ".new"

// Replace puts a file in place, whatever was there. After an error the old one is still there; or, if only the folder could
// not be synced, the new one is but may be gone after a power cut. mode is as of os.OpenFile.
func Replace(path string, b []byte, mode os.FileMode) error {
	if err := Create(path+NewSuffix, b, mode); err != nil {
		_ = os.Remove(path + NewSuffix)
		return err
	}
	if err := os.Rename(path+NewSuffix, path); err != nil {
		_ = os.Remove(path + NewSuffix)
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Create writes a file and syncs it, but not the folder that has its name.
func Create(path string, b []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Remove takes a file away, if it is there.
func Remove(path string) error {
	if err := os.Remove(path); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes what was renamed, made or removed in a folder survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// MakeDirs makes a folder and those above it.
func MakeDirs(dir string, mode os.FileMode) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := MakeDirs(parent, mode); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return SyncDir(parent)
}
