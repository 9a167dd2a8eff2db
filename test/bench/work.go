package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// newWorkDir makes the folder everything lives in, on a file system where O_DIRECT means something.
func newWorkDir(parent string) (string, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	parent, err := filepath.Abs(parent)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(parent, "vcbench-")
	if err != nil {
		return "", err
	}
	if err := checkWorkDir(dir); err != nil {
		os.RemoveAll(dir)
		return "", fmt.Errorf("work folder in %s: %w: choose another with --dir", parent, err)
	}
	return dir, nil
}

func checkWorkDir(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return err
	}
	if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
		return errors.New("this is memory, not a disk")
	}
	if len(dir) > 80 {
		return errors.New("path too long for a unix socket below it")
	}
	fd, err := unix.Open(filepath.Join(dir, "direct"), unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("O_DIRECT: %w", err)
	}
	return unix.Close(fd)
}

// checkRoom returns an error if less than need bytes are free in dir.
func checkRoom(dir string, need int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return err
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < need {
		return fmt.Errorf("%s: %d MiB free, %d MiB wanted: choose another with --dir or a smaller --size", dir, free>>20, need>>20)
	}
	return nil
}

// fill makes a file of random bytes: nothing in it can be compressed, is zero or is twice the same.
func fill(ctx context.Context, path string, n int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	rnd := rand.NewChaCha8([32]byte{'v', 'c'})
	buf := make([]byte, 1<<20)
	for done := int64(0); done < n; done += int64(len(buf)) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rnd.Read(buf)
		if _, err := f.Write(buf[:min(int64(len(buf)), n-done)]); err != nil {
			return err
		}
	}
	return f.Sync()
}

// warm brings a whole file into the page cache.
func warm(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	// A bare Reader: neither end may shortcut the copy past the page cache.
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return err
}

// chill takes a file out of the page cache.
func chill(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// cached is the share of a file's pages that are in the page cache. It needs Linux 6.5; before, the error
// is ENOSYS.
func cached(path string) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	var c unix.Cachestat_t
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &c, 0); err != nil {
		return 0, fmt.Errorf("cachestat of %s: %w", path, err)
	}
	page := int64(os.Getpagesize())
	return float64(c.Cache) / float64((st.Size()+page-1)/page), nil
}

// syncDir writes out what the file system of dir holds back, so that no cell pays for the one before.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}
