package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
)

// An I/O log tells fio each request, where fio's own options can't: the first write of each chunk in random
// order (with blockalign fio forgets which blocks it had), and a flush after exactly every 32nd write (fio
// 3.33's fsync=32 sends up to seven times as many at depth 16).

// blockSize is what a random request reads or writes.
const blockSize = 4096

// spreads returns the offset of one random block out of each unit bytes of size, in random order, always the
// same.
func spreads(size, unit int64) []int64 {
	rnd := rand.New(rand.NewPCG(uint64(size), uint64(unit)))
	offs := make([]int64, size/unit)
	for i := range offs {
		offs[i] = int64(i)*unit + rnd.Int64N(unit/blockSize)*blockSize
	}
	rnd.Shuffle(len(offs), func(i, j int) { offs[i], offs[j] = offs[j], offs[i] })
	return offs
}

// writeLog writes a log, in fio's version 2 format, of a write at each offset and a flush after every
// syncEvery of them (0: none). It ends with a request: were there a "close", fio would again look for a
// request past the end, and drop those in flight (see fioArgs).
func writeLog(w io.Writer, offs []int64, syncEvery int) error {
	b := bufio.NewWriter(w)
	fmt.Fprint(b, "fio version 2 iolog\nnbd add\nnbd open\n")
	for i, off := range offs {
		fmt.Fprintf(b, "nbd write %d %d\n", off, blockSize)
		if syncEvery > 0 && i%syncEvery == syncEvery-1 {
			fmt.Fprint(b, "nbd sync 0 0\n")
		}
	}
	return b.Flush()
}

func writeLogFile(path string, offs []int64, syncEvery int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := writeLog(f, offs, syncEvery); err != nil {
		f.Close()
		return fmt.Errorf("%s: %w", path, err)
	}
	return f.Close()
}
