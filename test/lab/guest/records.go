package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strconv"
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

// console is a file of the host, and outlives the guest.
const console = "/dev/ttyS0"

// write writes records to a disk until SIGTERM. With a seed, it says on the console what is flushed, for one who kills
// the guest.
func write(disk, slots, name string, seed ...string) error {
	n, err := strconv.Atoi(slots)
	if err != nil {
		return err
	}
	w := records.GuestWriter(n, 0)
	if len(seed) > 0 {
		if w.Seed, err = strconv.ParseUint(seed[0], 10, 64); err != nil {
			return err
		}
		tty, err := os.OpenFile(console, os.O_WRONLY|unix.O_NOCTTY, 0)
		if err != nil {
			return err
		}
		defer tty.Close()
		w.Flushed = func(worker int, seq uint64) { fmt.Fprintf(tty, records.Told+"\n", name, worker, seq) }
	}
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
