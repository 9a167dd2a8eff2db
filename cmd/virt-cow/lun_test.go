package main

import (
	"bytes"
	"fmt"
	"testing"
)

// A LUN with sectors of 4 KiB under the store: a guest still has sectors of 512 bytes.
func TestStoreOnBlockDevices(t *testing.T) {
	t.Parallel()
	for _, sector := range []string{"512", "4096"} {
		b := newBench(t)
		b.truncate("lun", 8*mib)
		lun := b.loop("lun", "--sector-size", sector)
		want := b.image("m.raw", 3*mib+512)
		b.clone(lun, "m.raw", "--name", "v", "--chunk", "64K")
		s := b.serve(lun)
		dev := s.dial()
		for i := range 40 {
			w := noise(uint64(i), 512*(1+i%9))
			off := i * 150 * 512 % (3 * mib)
			write(t, dev, w, int64(off))
			copy(want[off:], w)
		}
		holds(t, dev, want, 0)
		s.kill()
		dev.Close()
		s = b.serve(lun, "--hydrate")
		s.hydrated()
		dev = s.dial()
		holds(t, dev, want, 0)
		dev.Close()
		s.stop()
		b.run("store", "verify", lun).exits(0)
		i := b.info(lun)
		b.run("store", "info", lun).exits(0).says("<disk type='block'", "<source dev='"+lun+"'>", fmt.Sprintf("linear %s %d'", lun, i.DataOffset/512))
		if got := b.read("lun")[i.DataOffset:]; !bytes.Equal(got[:len(want)], want) {
			t.Errorf("sectors of %s: the data area is not the volume", sector)
		}
	}
}
