package blockdev

// Section is a part of a device that is a device itself. Closing it leaves the whole open.
type Section struct {
	whole Device
	base  int64
	info  Info
}

// NewSection returns the size bytes of whole that begin at base; both must be multiples of the block
// size and inside.
func NewSection(whole Device, base, size int64) (*Section, error) {
	info := whole.Info()
	if err := CheckRange(info, base, size); err != nil {
		return nil, err
	}
	info.Size = size
	return &Section{whole: whole, base: base, info: info}, nil
}

// Info implements Device.
func (s *Section) Info() Info { return s.info }

// ReadAt implements Device.
func (s *Section) ReadAt(p []byte, off int64) (int, error) {
	if err := CheckRange(s.info, off, int64(len(p))); err != nil {
		return 0, err
	}
	return s.whole.ReadAt(p, s.base+off)
}

// WriteAt implements Device.
func (s *Section) WriteAt(p []byte, off int64) (int, error) {
	if err := CheckRange(s.info, off, int64(len(p))); err != nil {
		return 0, err
	}
	return s.whole.WriteAt(p, s.base+off)
}

// WriteZeroes implements Device.
func (s *Section) WriteZeroes(off, length int64, unmap bool) error {
	if err := CheckRange(s.info, off, length); err != nil {
		return err
	}
	return s.whole.WriteZeroes(s.base+off, length, unmap)
}

// Flush implements Device; it flushes the whole.
func (s *Section) Flush() error { return s.whole.Flush() }

// Extents implements Device.
func (s *Section) Extents(off, length int64) ([]Extent, error) {
	if err := CheckRange(s.info, off, length); err != nil {
		return nil, err
	}
	out, err := s.whole.Extents(s.base+off, length)
	for i := range out {
		out[i].Offset -= s.base
	}
	return out, err
}

// Close implements Device.
func (s *Section) Close() error { return nil }

// Under tells which device this one is a part of, and where it begins there.
func (s *Section) Under() (Device, int64) { return s.whole, s.base }

// FileOf finds the File under a device and where in it the device begins, for I/O through a Ring. Devices
// that only pass requests on say so with a method Under.
func FileOf(d Device) (f *File, base int64, ok bool) {
	for {
		switch u := d.(type) {
		case *File:
			return u, base, true
		case interface{ Under() (Device, int64) }:
			under, at := u.Under()
			d, base = under, base+at
		default:
			return nil, 0, false
		}
	}
}
