package main

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The beats of "guest beat", one letter each on the console. The guest's own clock stops while it moves, so whoever wants
// to know how long it stood still reads the console's log from outside.
const (
	beatOfDisk = "d" // a block was written, past the page cache, and flushed
	beatOfCPU  = "c"
	beatEvery  = 3 * time.Millisecond
)

// beat writes to a disk's second half all the time, and tells the console of each write that is durable; and, beside that,
// that it runs.
func beat(disk string) error {
	f, err := os.OpenFile(disk, os.O_RDWR|unix.O_DIRECT|unix.O_DSYNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	console, err := openConsole()
	if err != nil {
		return err
	}
	defer console.Close()
	go func() {
		for {
			console.WriteString(beatOfCPU)
			time.Sleep(beatEvery)
		}
	}()
	const block = 4096
	buf := aligned(block)
	for n := int64(0); ; n++ {
		buf[n%block]++
		if _, err := f.WriteAt(buf, size/2+n*block%(size/2/block*block)); err != nil {
			return err
		}
		console.WriteString(beatOfDisk)
		time.Sleep(beatEvery)
	}
}
