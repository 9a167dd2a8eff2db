package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// cacheFile is the memory of the exception cache: a MAP_SHARED file on tmpfs, so that it outlives the
// process but not the boot. A page of identity, then one state a leaf, then a page a leaf: 4032 bytes of
// flags, the rest unused. Pages of leaves that are all clear, all set or not yet read are holes.
//
//	offset 0   8 bytes  magic
//	       8  16 bytes  store UUID
//	      24  16 bytes  owner instance: the store's header names the same, or this file is stale
//	      40   8 bytes  generation
//	      48   8 bytes  chunks
//	      56   4 bytes  1: a FLUSH failed
//	      60   4 bytes  the header's epoch when it was made, from 1 on
//	    4096   4 bytes  a leaf: its state, padded to a page
type cacheFile struct {
	path   string // "": anonymous memory, for a volume that is only read
	f      *os.File
	mem    []byte
	leaves int64
	pages  int64 // offset of the first leaf's page
}

const (
	cacheMagic       = "VCOWXC01"
	cachePage        = 4096
	offFlushFailed   = 56
	offEpoch         = 60
	leafUnread       = 0 // states of a leaf
	leafClear        = 1
	leafMixed        = 2
	leafFull         = 3
	wordsOfLeafFlags = store.LeafFlags / 8
)

var errNoCache = errors.New("no exception cache")

func cacheGeometry(leaves int64) (pages, size int64) {
	pages = cachePage + (leaves*4+cachePage-1)/cachePage*cachePage
	return pages, pages + leaves*cachePage
}

// createCache makes the cache file for a store that instance now owns, replacing a stale one.
func createCache(path string, h *cowfmt.Header, instance uuid.UUID, leaves int64) (*cacheFile, error) {
	if path == "" {
		return mapCache(nil, "", leaves)
	}
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("exception cache: %w", err)
	}
	pages, size := cacheGeometry(leaves)
	err = f.Truncate(size)
	if err == nil {
		// Room for what is always touched; a page that can't be had later would be a SIGBUS, not an error.
		err = unix.Fallocate(int(f.Fd()), 0, 0, pages)
	}
	if err == nil {
		_, err = f.WriteAt(cacheIdentity(h, instance), 0)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		f.Close()
		os.Remove(tmp)
		return nil, fmt.Errorf("exception cache %s: %w", path, err)
	}
	return mapCache(f, path, leaves)
}

// openCache maps what a dead engine of this boot, of this instance, left. errNoCache: it left none.
func openCache(path string, h *cowfmt.Header, instance uuid.UUID, leaves int64) (*cacheFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoCache
	}
	if err != nil {
		return nil, fmt.Errorf("exception cache: %w", err)
	}
	want := cacheIdentity(h, instance)
	got := make([]byte, len(want))
	_, err = f.ReadAt(got, 0)
	st, serr := f.Stat()
	_, size := cacheGeometry(leaves)
	if err != nil || serr != nil || string(got[:offFlushFailed]) != string(want[:offFlushFailed]) || st.Size() != size {
		f.Close()
		return nil, errNoCache
	}
	return mapCache(f, path, leaves)
}

func cacheIdentity(h *cowfmt.Header, instance uuid.UUID) []byte {
	b := make([]byte, offEpoch+4)
	copy(b, cacheMagic)
	copy(b[8:], h.UUID[:])
	copy(b[24:], instance[:])
	binary.LittleEndian.PutUint64(b[40:], h.Generation)
	binary.LittleEndian.PutUint64(b[48:], uint64(h.Chunks()))
	binary.LittleEndian.PutUint32(b[offEpoch:], h.Epoch)
	return b
}

// RemoveOutlived removes the exception cache that an engine of this host left if another host has the store since a later epoch:
// nobody goes on with it any more. An epoch that is not later is an old copy of the header, perhaps, of before this host's. No
// engine of this host has the store open meanwhile.
func RemoveOutlived(path string, h *cowfmt.Header, host uuid.UUID) error {
	if h.Owner == nil || h.Owner.Host == host {
		return nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("exception cache: %w", err)
	}
	defer f.Close()
	b := make([]byte, offEpoch+4)
	if _, err := f.ReadAt(b, 0); err != nil {
		return fmt.Errorf("exception cache %s: %w", path, err)
	}
	made := binary.LittleEndian.Uint32(b[offEpoch:])
	if string(b[:8]) != cacheMagic || string(b[8:24]) != string(h.UUID[:]) || made == 0 || h.Epoch <= made {
		return nil
	}
	return os.Remove(path)
}

func mapCache(f *os.File, path string, leaves int64) (*cacheFile, error) {
	c := &cacheFile{path: path, f: f, leaves: leaves}
	var size int64
	c.pages, size = cacheGeometry(leaves)
	fd, flags := -1, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE
	if f != nil {
		fd, flags = int(f.Fd()), unix.MAP_SHARED
	}
	var err error
	c.mem, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, fmt.Errorf("map exception cache of %d bytes: %w", size, err)
	}
	return c, nil
}

// populate gets the memory for a leaf's page, so that touching it can't fail.
func (c *cacheFile) populate(leaf int64) error {
	if c.f == nil {
		return nil
	}
	if err := unix.Fallocate(int(c.f.Fd()), 0, c.pages+leaf*cachePage, cachePage); err != nil {
		return fmt.Errorf("memory for the exception cache %s: %w", c.path, err)
	}
	return nil
}

// state is the leaf's state word. It goes from unread to clear, mixed or full, and on in that order.
func (c *cacheFile) state(leaf int64) *uint32 {
	return (*uint32)(unsafe.Pointer(&c.mem[cachePage+leaf*4]))
}

// words are the leaf's flags, for atomic access; flag i is bit i%64 of word i/64.
func (c *cacheFile) words(leaf int64) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(&c.mem[c.pages+leaf*cachePage])), wordsOfLeafFlags)
}

func (c *cacheFile) flushFailed() *uint32 {
	return (*uint32)(unsafe.Pointer(&c.mem[offFlushFailed]))
}

func (c *cacheFile) setFlushFailed() { atomic.StoreUint32(c.flushFailed(), 1) }

// close unmaps the cache; remove says that nothing in it is needed any more.
func (c *cacheFile) close(remove bool) error {
	err := unix.Munmap(c.mem)
	c.mem = nil
	if c.f != nil {
		if remove {
			err = errors.Join(err, os.Remove(c.path))
		}
		err = errors.Join(err, c.f.Close())
	}
	return err
}
