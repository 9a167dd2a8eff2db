package engine

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// What the helper process is told, by its environment.
const (
	victimDir  = "VIRT_COW_TEST_VICTIM_DIR" // store, master and cache are here
	victimBoot = "VIRT_COW_TEST_VICTIM_BOOT"
	victimSeed = "VIRT_COW_TEST_VICTIM_SEED"

	victimSize  = 2*mib + 3*512
	victimChunk = 16 << 10
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		if err := victim(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A report is what the helper process tells of a request: before it is made and when it was acknowledged.
// 24 bytes: kind, version, offset, length, all but the kind little endian.
const (
	reportIssue = 'i'
	reportAck   = 'a'
	reportSize  = 24
)

func report(kind byte, version uint32, off, length int64) []byte {
	b := make([]byte, reportSize)
	b[0] = kind
	binary.LittleEndian.PutUint32(b[4:], version)
	binary.LittleEndian.PutUint64(b[8:], uint64(off))
	binary.LittleEndian.PutUint64(b[16:], uint64(length))
	return b
}

// openVictim opens the volume in dir as an engine process does: the lock first.
func openVictim(dir string, boot uuid.UUID) (*Volume, *blockdev.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	file, err := blockdev.OpenFile(ctx, filepath.Join(dir, "store"), blockdev.FileOptions{Direct: true, Lock: blockdev.LockExclusive})
	if err != nil {
		return nil, nil, err
	}
	master, err := blockdev.OpenFile(ctx, filepath.Join(dir, "master"), blockdev.FileOptions{ReadOnly: true})
	if err != nil {
		return nil, nil, err
	}
	v, err := openOn(file, master, boot, filepath.Join(dir, "cache"), func(o *Options) { o.CommitEvery = 10 * time.Millisecond })
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return v, file, nil
}

// victim is the helper process: three clients write at random, each to its own third, until it is killed.
func victim(dir string) error {
	seed, err := strconv.ParseUint(os.Getenv(victimSeed), 10, 64)
	if err != nil {
		return err
	}
	v, _, err := openVictim(dir, uuid.MustParse(os.Getenv(victimBoot)))
	if err != nil {
		return err
	}
	if seed%3 == 0 {
		v.SetHydrationRate(8 * mib)
		if err := v.StartHydration(); err != nil {
			return err
		}
	}
	var mu sync.Mutex
	tell := func(b []byte) error {
		mu.Lock()
		defer mu.Unlock()
		_, err := os.Stdout.Write(b)
		return err
	}
	failed := make(chan error)
	const third = int64(victimSize / 3 / sector * sector)
	for k := range uint64(3) {
		go func() {
			rng := rand.New(rand.NewPCG(seed, k))
			for {
				n := (1 + rng.Int64N(60)) * sector
				r := &blockdev.Request{Op: blockdev.OpWrite, Off: int64(k)*third + rng.Int64N((third-n)/sector)*sector, Length: n, FUA: rng.IntN(20) == 0}
				version := rng.Uint32()&0x7ffffffe + 2
				switch rng.IntN(16) {
				case 0:
					r.Op, version = blockdev.OpWriteZeroes, 1
				case 1:
					if err := v.Flush(); err != nil {
						failed <- err
						return
					}
				}
				if r.Op == blockdev.OpWrite {
					r.Buf = blockdev.Alloc(int(n))
					fill(r.Buf, r.Off, version)
				}
				err := tell(report(reportIssue, version, r.Off, n))
				if err == nil {
					err = request(v, r)
				}
				if err == nil {
					err = tell(report(reportAck, version, r.Off, n))
				}
				if err != nil {
					failed <- err
					return
				}
				blockdev.Free(r.Buf)
			}
		}()
	}
	return <-failed
}

// An engine process is killed at random moments under writes; its successor shows everything that was
// acknowledged.
func TestSigkill(t *testing.T) {
	dir := cacheDir(t)
	storeDir := t.TempDir()
	for _, name := range []string{"store", "master"} {
		path := filepath.Join(storeDir, name)
		check(t, os.WriteFile(path, nil, 0o600))
		check(t, os.Truncate(path, 8*mib))
		check(t, os.Symlink(path, filepath.Join(dir, name)))
	}
	master := openFile(t, filepath.Join(dir, "master"), blockdev.FileOptions{})
	_, err := master.WriteAt(filled(0, mib, 0), 0)
	check(t, err)
	file := openFile(t, filepath.Join(dir, "store"), blockdev.FileOptions{Direct: true})
	if !file.Direct() {
		t.Logf("no O_DIRECT on the file system of %s: killed over the page cache", storeDir)
	}
	_, err = newStore(victimSize, victimChunk, true, func(int64) (blockdev.Device, error) { return file, nil })
	check(t, err)
	check(t, file.Close())

	boot := uuid.New()
	m := newModel(0, victimSize, func(at int64) uint64 {
		if at*sector < mib {
			return word(0, at)
		}
		return 0
	})
	acked := 0
	const rounds = 30
	for round := range uint64(rounds) {
		acked += killOne(t, dir, boot, round, m)
		v, file, err := openVictim(dir, boot)
		if err != nil {
			t.Fatalf("round %d: the successor: %v", round, err)
		}
		p := contents(t, v, victimSize)
		if err := m.visible(p, 0); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		m.found(p, false)
		if round%3 == 0 { // else the next helper process succeeds an engine that was killed
			check(t, v.Close())
		} else {
			abandon(v)
		}
		check(t, file.Close())
	}
	if acked < rounds {
		t.Errorf("%d requests were acknowledged in %d rounds: too few to prove anything", acked, rounds)
	}
	t.Logf("%d rounds, %d requests acknowledged", rounds, acked)
}

// killOne runs the helper process and kills it; what it reported goes into the model.
func killOne(t *testing.T, dir string, boot uuid.UUID, round uint64, m *model) (acked int) {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	cmd := exec.Command(self, "-test.run=^$")
	cmd.Env = append(os.Environ(), victimDir+"="+dir, victimBoot+"="+boot.String(), fmt.Sprintf("%s=%d", victimSeed, round))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	rng := rand.New(rand.NewPCG(round, 3))
	limit, wait := 1+rng.IntN(400), time.Duration(rng.IntN(3000))*time.Microsecond
	r := bufio.NewReader(out)
	b := make([]byte, reportSize)
	for reports := 0; ; reports++ {
		if _, err = io.ReadFull(r, b); err != nil {
			break
		}
		version := binary.LittleEndian.Uint32(b[4:])
		off, length := int64(binary.LittleEndian.Uint64(b[8:])), int64(binary.LittleEndian.Uint64(b[16:]))
		switch b[0] {
		case reportIssue:
			m.issue(off, length, func(at int64) uint64 {
				if version == 1 {
					return 0
				}
				return word(version, at)
			})
		case reportAck:
			m.ack(off, length, false)
			acked++
		}
		if reports == limit { // then what is in the pipe still counts
			time.Sleep(wait)
			check(t, cmd.Process.Kill())
		}
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if err := cmd.Wait(); cmd.ProcessState == nil || cmd.ProcessState.Exited() {
		t.Fatalf("round %d: the helper process ended by itself: %v", round, err)
	}
	return acked
}
