package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/test/lab/records"
)

// The files of a run called NAME: its progress (writes acknowledged, as a number), its process ID while it
// writes, and what it did once it has ended.
func progressFile(name string) string { return "/tmp/" + name + ".progress" }
func pidFile(name string) string      { return "/tmp/" + name + ".pid" }
func logFile(name string) string      { return "/tmp/" + name + ".json" }

// write writes records to a disk until SIGTERM. With a seed, it says on the console what is flushed, for one who kills
// the guest.
func write(disk, slots, name string, seed ...string) error {
	w, err := writer(slots, seed...)
	if err != nil {
		return err
	}
	if len(seed) == 0 {
		return work(w, disk, name, func(string, ...any) {})
	}
	tty, err := openConsole()
	if err != nil {
		return err
	}
	defer tty.Close()
	return work(w, disk, name, tty.tell)
}

// tty is the console. It is a file of the host, and outlives the guest.
type tty struct{ *os.File }

func openConsole() (tty, error) {
	f, err := os.OpenFile("/dev/ttyS0", os.O_WRONLY|unix.O_NOCTTY, 0)
	return tty{f}, err
}

func (t tty) tell(format string, args ...any) { fmt.Fprintf(t, format+"\n", args...) }

// check writes as write does, and reads back all the time, past the page cache and through it.
func check(disk, slots, name, seed string, base bool) error {
	w, err := writer(slots, seed)
	if err != nil {
		return err
	}
	w.Base = base
	direct, err := os.OpenFile(disk, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer direct.Close()
	cached, err := os.OpenFile(disk, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer cached.Close()
	// A page that is read ahead may be another worker's, and be read while that writes it.
	if err := unix.Fadvise(int(cached.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return err
	}
	w.Readers = []io.ReaderAt{direct, dropped{cached}}
	tty, err := openConsole()
	if err != nil {
		return err
	}
	defer tty.Close()
	if err := work(w, disk, name, tty.tell); err != nil {
		tty.tell(records.Wrong, name, strings.ReplaceAll(err.Error(), "\n", "; "))
		return err
	}
	tty.tell(records.Right, name, w.Acked(), w.Read())
	return nil
}

// dropped reads through the page cache, which has first to let go of what it has.
type dropped struct{ f *os.File }

func (d dropped) ReadAt(p []byte, off int64) (int, error) {
	if err := unix.Fadvise(int(d.f.Fd()), off, int64(len(p)), unix.FADV_DONTNEED); err != nil {
		return 0, err
	}
	return d.f.ReadAt(p, off)
}

func writer(slots string, seed ...string) (*records.Writer, error) {
	n, err := strconv.Atoi(slots)
	if err != nil {
		return nil, err
	}
	w := records.GuestWriter(n, 0)
	if len(seed) > 0 {
		w.Seed, err = strconv.ParseUint(seed[0], 10, 64)
	}
	return w, err
}

// work runs a writer until SIGTERM, keeping the files of a run.
func work(w *records.Writer, disk, name string, tell func(format string, args ...any)) error {
	w.Flushed = func(worker int, seq uint64) { tell(records.Told, name, worker, seq) }
	f, err := os.OpenFile(disk, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.WriteFile(pidFile(name), []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return err
	}
	defer os.Remove(pidFile(name))

	stop := make(chan struct{})
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		close(stop)
	}()
	w.Disk, w.Alloc = f, aligned
	go func() {
		for ; ; time.Sleep(100 * time.Millisecond) {
			os.WriteFile(progressFile(name)+".new", []byte(strconv.FormatUint(w.Acked(), 10)), 0o644)
			os.Rename(progressFile(name)+".new", progressFile(name))
		}
	}()
	log, err := w.Run(stop)
	b, merr := json.Marshal(log)
	if merr != nil {
		return merr
	}
	if werr := os.WriteFile(logFile(name), b, 0o644); werr != nil {
		return werr
	}
	return err
}

// verify reads back, past the page cache, what write did.
func verify(disk, name string) error {
	b, err := os.ReadFile(logFile(name))
	if err != nil {
		return err
	}
	var log records.Log
	if err := json.Unmarshal(b, &log); err != nil {
		return err
	}
	f, err := os.OpenFile(disk, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := log.Verify(f, aligned)
	if err != nil {
		return err
	}
	fmt.Printf("%d records, %d flushes: nothing lost\n", n, log.Flushes)
	return nil
}

// aligned allocates memory fit for direct I/O.
func aligned(size int) []byte {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err) // out of memory
	}
	return b
}
