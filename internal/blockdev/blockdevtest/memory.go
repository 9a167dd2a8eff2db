package blockdevtest

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// handle is what an open device needs whatever lies under it.
type handle struct {
	info   blockdev.Info
	closed atomic.Bool
}

// admit refuses what the handle can't do.
func (h *handle) admit(write bool, off, length int64) error {
	switch {
	case h.closed.Load():
		return fmt.Errorf("%s: %w", h.info.Name, os.ErrClosed)
	case write && h.info.ReadOnly:
		return fmt.Errorf("%s: %w", h.info.Name, blockdev.ErrReadOnly)
	}
	return blockdev.CheckRange(h.info, off, length)
}

// Info implements blockdev.Device.
func (h *handle) Info() blockdev.Info { return h.info }

// Close implements blockdev.Device. The contents stay: Open and Fork still work.
func (h *handle) Close() error {
	if h.closed.Swap(true) {
		return fmt.Errorf("%s: %w", h.info.Name, os.ErrClosed)
	}
	return nil
}

type memoryDisk struct {
	mu  sync.RWMutex
	now *image
}

// Memory is a block device in memory. Only what was written takes room, so it may be many TiB. A Memory
// is one opening of its disk; there may be others.
type Memory struct {
	handle
	disk *memoryDisk
}

var _ blockdev.Device = (*Memory)(nil)

// NewMemory returns a device of size bytes that reads as zeros. blockSize is 512 or 4096, and size a
// multiple of it.
func NewMemory(name string, size int64, blockSize int) *Memory {
	if blockSize != 512 && blockSize != 4096 || size <= 0 || size%int64(blockSize) != 0 {
		panic(fmt.Sprintf("memory device %s: size %d with block size %d: want blocks of 512 or 4096 bytes, and whole ones",
			name, size, blockSize))
	}
	return memoryOf(blockdev.Info{Name: name, Size: size, BlockSize: blockSize}, newImage())
}

func memoryOf(info blockdev.Info, im *image) *Memory {
	info.ReadOnly = false
	return &Memory{handle: handle{info: info}, disk: &memoryDisk{now: im}}
}

// Open returns another opening of the same disk, as a second process or host would have, or the first
// one again after Close.
func (m *Memory) Open(readOnly bool) *Memory {
	again := &Memory{handle: handle{info: m.info}, disk: m.disk}
	again.info.ReadOnly = readOnly
	return again
}

// Fork returns an independent, writable copy of the disk. It costs a few microseconds.
func (m *Memory) Fork() *Memory {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	return memoryOf(m.info, m.disk.now.fork())
}

// ReadAt implements blockdev.Device.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	if err := m.admit(false, off, int64(len(p))); err != nil {
		return 0, err
	}
	m.disk.mu.RLock()
	defer m.disk.mu.RUnlock()
	m.disk.now.read(p, off)
	return len(p), nil
}

// WriteAt implements blockdev.Device.
func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	if err := m.admit(true, off, int64(len(p))); err != nil {
		return 0, err
	}
	data := append([]byte(nil), p...)
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	m.disk.now.put(data, off)
	return len(p), nil
}

// WriteZeroes implements blockdev.Device.
func (m *Memory) WriteZeroes(off, length int64, unmap bool) error {
	if err := m.admit(true, off, length); err != nil {
		return err
	}
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	m.disk.now.zero(off, length, unmap)
	return nil
}

// Flush implements blockdev.Device. There is nothing to lose, so it does nothing.
func (m *Memory) Flush() error { return m.admit(false, 0, 0) }

// Extents implements blockdev.Device.
func (m *Memory) Extents(off, length int64) ([]blockdev.Extent, error) {
	if err := m.admit(false, off, length); err != nil {
		return nil, err
	}
	m.disk.mu.RLock()
	defer m.disk.mu.RUnlock()
	return m.disk.now.extents(off, length), nil
}
