package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// sample is one run of one cell against one server.
type sample struct {
	Requests int64   `json:"requests"` // reads and writes
	Syncs    int64   `json:"syncs,omitempty"`
	Seconds  float64 `json:"seconds"`
	IOPS     float64 `json:"iops"`
	MBps     float64 `json:"mbps"`  // 10^6 bytes a second
	P50      float64 `json:"p50us"` // completion latency, microseconds
	P99      float64 `json:"p99us"`
	Max      float64 `json:"maxUs,omitempty"`
	SyncP99  float64 `json:"syncP99us,omitempty"`
	CPU      float64 `json:"cpuUsPerRequest"` // of the server, microseconds
}

// load is what fio is asked to do.
type load struct {
	rw      string // fio's rw
	bs      int    // bytes
	depth   int
	runtime time.Duration
	once    bool              // end with the disk, even before runtime
	replay  string            // path of an I/O log which replaces rw and bs
	flush   bool              // flush at the end
	span    int64             // bytes from the beginning that are read or written, 0: all
	seed    int               // of what is read or written where
	rate    int               // requests a second at most, 0: no limit
	started func(*os.Process) // called with fio, if not nil
}

// fioArgs is fio's command line for a load on the server at socket.
//
// Replays are given number_ios=1: the log still runs to its end, but fio then waits for what is in flight.
// Without it fio 3.33 marks the job done on reading past the log and drops up to depth requests (its
// td_io_getevents returns nothing for a job that is done).
func fioArgs(socket string, l load) []string {
	args := []string{
		"--name=bench", "--ioengine=nbd", "--uri=nbd+unix:///?socket=" + socket,
		"--output-format=json", "--percentile_list=50:99", "--clat_percentiles=1",
		"--iodepth=" + strconv.Itoa(l.depth), "--randrepeat=1",
		"--thread", // one process, so that killing it leaves no job behind
	}
	if l.runtime > 0 {
		args = append(args, fmt.Sprintf("--runtime=%dms", l.runtime.Milliseconds()))
	}
	if l.replay != "" {
		return append(args, "--read_iolog="+l.replay, "--replay_no_stall=1", "--number_ios=1")
	}
	args = append(args, "--rw="+l.rw, "--bs="+strconv.Itoa(l.bs))
	if l.span > 0 {
		args = append(args, fmt.Sprintf("--size=%d", l.span))
	}
	if l.seed > 0 {
		args = append(args, "--norandommap", fmt.Sprintf("--randseed=%d", l.seed))
	}
	if l.rate > 0 {
		args = append(args, fmt.Sprintf("--rate_iops=%d", l.rate))
	}
	if !l.once {
		args = append(args, "--time_based")
	}
	if l.flush {
		args = append(args, "--end_fsync=1")
	}
	return args
}

// runFio runs a load and returns what fio says of it; the CPU column is not filled in.
func runFio(ctx context.Context, socket string, l load) (sample, error) {
	cmd := exec.CommandContext(ctx, "fio", fioArgs(socket, l)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's ^C is ours to handle
	var stderr tail
	cmd.Stderr = &stderr
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	err := cmd.Start()
	if err == nil {
		if l.started != nil {
			l.started(cmd.Process)
		}
		err = cmd.Wait()
	}
	out := stdout.Bytes()
	if ctx.Err() != nil {
		return sample{}, ctx.Err()
	}
	if err != nil {
		return sample{}, fmt.Errorf("fio on %s: %w: %s%s", socket, err, notes(out), &stderr)
	}
	return parseFio(out)
}

type fioLatency struct {
	Max        float64            `json:"max"`
	Percentile map[string]float64 `json:"percentile"` // "50.000000" -> nanoseconds
}

type fioDirection struct {
	IOs     int64      `json:"total_ios"`
	IOPS    float64    `json:"iops"`
	Bytes   float64    `json:"bw_bytes"` // a second
	Runtime float64    `json:"runtime"`  // milliseconds
	Clat    fioLatency `json:"clat_ns"`
	Lat     fioLatency `json:"lat_ns"` // syncs have this one only
}

type fioOutput struct {
	Jobs []struct {
		Error int          `json:"error"`
		Read  fioDirection `json:"read"`
		Write fioDirection `json:"write"`
		Sync  fioDirection `json:"sync"`
	} `json:"jobs"`
}

// notes is what fio prints ahead of its JSON.
func notes(out []byte) []byte {
	if i := bytes.Index(out, []byte("{\n")); i >= 0 {
		return out[:i]
	}
	return out
}

// parseFio reads fio's JSON: one job that either read or wrote.
func parseFio(out []byte) (sample, error) {
	var f fioOutput
	if err := json.Unmarshal(out[len(notes(out)):], &f); err != nil {
		return sample{}, fmt.Errorf("fio's JSON: %w: %s", err, notes(out))
	}
	if len(f.Jobs) != 1 {
		return sample{}, fmt.Errorf("fio's JSON: %d jobs, want 1", len(f.Jobs))
	}
	j := f.Jobs[0]
	if j.Error != 0 {
		return sample{}, fmt.Errorf("fio: job failed: %w", syscall.Errno(j.Error))
	}
	d := j.Read
	if d.IOs == 0 {
		d = j.Write
	}
	if d.IOs == 0 || d.Runtime == 0 {
		return sample{}, errors.New("fio: no request was completed")
	}
	return sample{
		Requests: d.IOs,
		Syncs:    j.Sync.IOs,
		Seconds:  d.Runtime / 1e3,
		IOPS:     d.IOPS,
		MBps:     d.Bytes / 1e6,
		P50:      d.Clat.us("50.000000"),
		P99:      d.Clat.us("99.000000"),
		Max:      d.Clat.Max / 1e3,
		SyncP99:  j.Sync.Lat.us("99.000000"),
	}, nil
}

func (l fioLatency) us(percentile string) float64 { return l.Percentile[percentile] / 1e3 }
