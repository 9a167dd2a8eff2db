package blockdev

import (
	"sync"
	"testing"
	"unsafe"
)

func TestAlloc(t *testing.T) {
	for _, n := range []int{0, 1, 511, 512, 4096, 4097, 128 << 10, 256 << 10, 256<<10 + 1, 1 << 20, 32 << 20, 32<<20 + 1} {
		var kept [][]byte
		for range 6 { // more than are kept of a large class
			buf := Alloc(n)
			if len(buf) != n || uintptr(unsafe.Pointer(unsafe.SliceData(buf)))%4096 != 0 {
				t.Fatalf("Alloc(%d): %d bytes at %p", n, len(buf), buf)
			}
			for i := 0; i < n; i += 512 {
				buf[i] = byte(len(kept))
			}
			kept = append(kept, buf)
		}
		for k, buf := range kept { // none is another's
			for i := 0; i < n; i += 512 {
				if buf[i] != byte(k) {
					t.Fatalf("Alloc(%d): two buffers share memory", n)
				}
			}
			Free(buf)
		}
	}
	Free(nil)
}

func TestAllocFromManyGoroutines(t *testing.T) {
	var wg sync.WaitGroup
	for g := range byte(8) {
		wg.Go(func() {
			for i := range 2000 {
				buf := Alloc(512 << (i % 10))
				for at := range buf[:512] {
					buf[at] = g
				}
				for at := range buf[:512] {
					if buf[at] != g {
						t.Errorf("somebody else wrote into this buffer")
						return
					}
				}
				Free(buf)
			}
		})
	}
	wg.Wait()
}
