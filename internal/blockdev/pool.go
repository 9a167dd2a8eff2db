package blockdev

import (
	"math/bits"
	"sync"

	"golang.org/x/sys/unix"
)

// Buffers for O_DIRECT live outside the garbage collector's heap: the collector need not look at them,
// and the kernel may write to them while no Go pointer does. Sizes are powers of two.
const (
	minClass  = 12 // 4 KiB, a page: the strictest alignment a device asks for
	maxClass  = 25 // 32 MiB, the largest NBD request
	slabClass = 18 // buffers to 256 KiB are cut from slabs and kept for ever, larger ones are mapped singly
	slabSize  = 1 << 20
	keepLarge = 4 // free large buffers kept, each class
)

type class struct {
	mu   sync.Mutex
	free [][]byte
}

var classes [maxClass + 1]class

// Alloc returns a buffer of n bytes, page aligned, whose content is anything. It must be given back with
// Free, once, by whoever holds it last. It panics where the machine has no memory left, as make does.
func Alloc(n int) []byte {
	c := max(minClass, bits.Len(uint(max(n, 1)-1)))
	if c > maxClass {
		return mapMemory(n)
	}
	k := &classes[c]
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.free) == 0 {
		if c > slabClass {
			return mapMemory(1 << c)[:n]
		}
		slab := mapMemory(slabSize)
		for at := 0; at < slabSize; at += 1 << c {
			k.free = append(k.free, slab[at:at+1<<c:at+1<<c])
		}
	}
	last := len(k.free) - 1
	buf := k.free[last]
	k.free = k.free[:last]
	return buf[:n]
}

// Free gives a buffer of Alloc back. Nil is allowed.
func Free(buf []byte) {
	if buf == nil {
		return
	}
	buf = buf[:cap(buf)]
	c := bits.Len(uint(len(buf) - 1))
	if c > maxClass {
		unmapMemory(buf)
		return
	}
	k := &classes[c]
	k.mu.Lock()
	defer k.mu.Unlock()
	if c > slabClass && len(k.free) >= keepLarge {
		unmapMemory(buf)
		return
	}
	k.free = append(k.free, buf)
}

func mapMemory(n int) []byte {
	buf, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		panic("out of memory: " + err.Error())
	}
	return buf
}

func unmapMemory(buf []byte) {
	if err := unix.Munmap(buf); err != nil {
		panic("munmap of a buffer that was not mapped: " + err.Error())
	}
}
