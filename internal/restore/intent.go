package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/domainxml"
	"github.com/virt-cow/virt-cow/internal/durable"
)

var (
	// ErrGoesOn says that a restore of the domain is at work just now.
	ErrGoesOn = errors.New("a restore of it goes on just now")
	// ErrNoIntent says that no restore of the domain was cut off.
	ErrNoIntent = errors.New("no restore of it was cut off")
)

// Intent is what a restore is about to do. It is durable before anything else is written, and gone once the domain is defined, or
// nothing of it is left.
type Intent struct {
	Version int          `json:"version"`
	Domain  string       `json:"domain"` // its name when it is restored
	UUID    string       `json:"uuid"`
	Backup  string       `json:"backup"`
	Begun   int64        `json:"begun"` // Unix seconds
	Disks   []IntentDisk `json:"disks"`
	// NVRAM and TPM are the domainxml.Places; "" is none. Replaced says that state of something else may have been there.
	NVRAM    string `json:"nvram,omitempty"`
	TPM      string `json:"tpm,omitempty"`
	Replaced bool   `json:"replaced,omitempty"`
	// Whole says that all is durable, and the domain is about to be defined.
	Whole bool `json:"whole,omitempty"`
}

// IntentDisk is a disk of it.
type IntentDisk struct {
	Target string `json:"target"`
	Path   string `json:"path"`
	Volume string `json:"volume"` // its name
	Device bool   `json:"device,omitempty"`
	// Dev and Ino are those of the file that is made, 0 before: whatever else comes to have its name is not ours to remove.
	Dev uint64 `json:"dev,omitempty"`
	Ino uint64 `json:"ino,omitempty"`
}

const intentVersion = 1

// Journal keeps the intents of a host in a folder, one a domain.
type Journal struct{ Dir string }

// JournalIn is the one of a host whose state folder this is.
func JournalIn(stateDir string) Journal { return Journal{Dir: filepath.Join(stateDir, "restores")} }

const (
	intentSuffix = ".json"
	lockPrefix   = ".lock-" // no domain's name begins with a dot
)

// Entry is an intent that this process holds: nobody else restores that domain, or cleans up after it.
type Entry struct {
	Intent
	path string
	lock *os.File
}

// lockPatience is how long somebody may look at an intent.
const lockPatience = 2 * time.Second

// Hold takes a domain's place in the journal; its Intent is that of a restore that was cut off, or has Version 0. ErrGoesOn.
func (j Journal) Hold(ctx context.Context, domain string) (*Entry, error) {
	if err := domainxml.CheckName(domain); err != nil {
		return nil, err
	}
	if err := durable.MakeDirs(j.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := j.lock(ctx, domain)
	if err != nil {
		return nil, err
	}
	e := &Entry{path: filepath.Join(j.Dir, domain+intentSuffix), lock: lock}
	e.Intent, err = read(e.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		lock.Close()
		return nil, err
	}
	return e, nil
}

func (j Journal) lock(ctx context.Context, domain string) (*os.File, error) {
	path := filepath.Join(j.Dir, lockPrefix+domain)
	for end := time.Now().Add(lockPatience); ; time.Sleep(20 * time.Millisecond) {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && sameFile(f, path) { // else who had it has just removed it
			return f, nil
		}
		f.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("domain %s: %w", domain, ErrGoesOn)
		}
	}
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

func read(path string) (Intent, error) {
	var i Intent
	b, err := os.ReadFile(path)
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal(b, &i); err != nil {
		return i, fmt.Errorf("%s: %w", path, err)
	}
	if i.Version != intentVersion {
		return i, fmt.Errorf("%s: it has version %d: a newer virt-cow wrote it", path, i.Version)
	}
	return i, nil
}

// save makes the intent durable.
func (e *Entry) save() error {
	b, err := json.MarshalIndent(e.Intent, "", "  ")
	if err != nil {
		return err
	}
	return durable.Replace(e.path, append(b, '\n'), 0o600)
}

// end removes the intent, durably.
func (e *Entry) end() error {
	e.Intent = Intent{}
	return durable.Remove(e.path)
}

// Close lets go of it. An intent that is there stays.
func (e *Entry) Close() error {
	if e.Version == 0 {
		_ = os.Remove(e.lock.Name()) // before it is let go of: see lock
	}
	return e.lock.Close()
}

// definition is where a definition is kept that libvirt refused; it has secrets in it.
func (e *Entry) definition() string { return strings.TrimSuffix(e.path, intentSuffix) + ".xml" }

// CutOff are the restores that were begun, did not come to their end and don't go on, by name. It waits for nothing.
func (j Journal) CutOff() ([]Intent, error) {
	entries, err := os.ReadDir(j.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []Intent
	for _, e := range entries {
		domain, is := strings.CutSuffix(e.Name(), intentSuffix)
		if !is || j.goesOn(domain) {
			continue
		}
		i, err := read(filepath.Join(j.Dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // just ended
		}
		if err != nil {
			return nil, err
		}
		all = append(all, i)
	}
	return all, nil
}

func (j Journal) goesOn(domain string) bool {
	f, err := os.Open(filepath.Join(j.Dir, lockPrefix+domain))
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}
