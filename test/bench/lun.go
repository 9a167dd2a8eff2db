package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/virt-cow/virt-cow/test/lab"
)

// lun is a block device of our own over a file, which counts what is done to it.
type lun struct {
	*os.File
	back string // the file under the device
}

// newLUN makes a block device over a file that it makes in folder; size is in bytes.
func newLUN(folder, name string, size int64) (*lun, error) {
	l := &lun{back: filepath.Join(folder, name)}
	f, err := os.Create(l.back)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(l.back))
	}
	if l.File, err = lab.Loop(l.back); err != nil {
		return nil, errors.Join(err, os.Remove(l.back))
	}
	return l, nil
}

// close takes the device away, and its file. Who has it open keeps it until then.
func (l *lun) close() error { return errors.Join(l.Close(), os.Remove(l.back)) }

// deviceIO is what a block device has done: requests, and bytes written.
type deviceIO struct{ reads, writes, written, flushes float64 }

// plus is what two devices have done.
func (io deviceIO) plus(o deviceIO) deviceIO {
	return deviceIO{io.reads + o.reads, io.writes + o.writes, io.written + o.written, io.flushes + o.flushes}
}

// since is what was done from before on, a request.
func (io deviceIO) since(before deviceIO, requests float64) deviceIO {
	return deviceIO{(io.reads - before.reads) / requests, (io.writes - before.writes) / requests,
		(io.written - before.written) / requests, (io.flushes - before.flushes) / requests}
}

// io is what the device has done so far.
func (l *lun) io() (deviceIO, error) {
	path := filepath.Join("/sys/block", filepath.Base(l.Name()), "stat")
	text, err := os.ReadFile(path)
	if err != nil {
		return deviceIO{}, err
	}
	return parseStat(path, string(text))
}

// parseStat reads a block device's counters, which Documentation/block/stat.rst of Linux lists.
func parseStat(path, text string) (io deviceIO, err error) {
	f := strings.Fields(text)
	for _, c := range []struct {
		at   int
		into *float64
	}{{0, &io.reads}, {4, &io.writes}, {6, &io.written}, {15, &io.flushes}} {
		if c.at >= len(f) {
			return io, fmt.Errorf("%s: %d figures, no number %d", path, len(f), c.at)
		}
		if *c.into, err = strconv.ParseFloat(f[c.at], 64); err != nil {
			return io, fmt.Errorf("%s: %w", path, err)
		}
	}
	io.written *= 512
	return io, nil
}
