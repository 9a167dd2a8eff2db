package cowfmt

import "fmt"

// Version1 is the first format: everything in this package. A new version is for changes that no
// feature bit can express, that is to the fixed part of the header beyond its first 48 bytes, to the
// form of records or to the places of the metadata.
const Version1 = 1

// The feature bits this program knows; version 1 began with none.
const (
	knownReadOnly     uint64 = 0
	knownIncompatible uint64 = 0
)

// Readable returns ErrUnknownFeature, naming the bits, if the store must not even be read.
func (f Features) Readable() error {
	if bits := f.Incompatible &^ knownIncompatible; bits != 0 {
		return fmt.Errorf("%w (bits %#x): use the program that made the store, or a newer one", ErrUnknownFeature, bits)
	}
	return nil
}

// Writable returns ErrUnknownFeature or ErrReadOnlyFeature, naming the bits, if the store must not be
// written. Header.Encode asks it too, so that a writer can't forget.
func (f Features) Writable() error {
	if err := f.Readable(); err != nil {
		return err
	}
	if bits := f.ReadOnly &^ knownReadOnly; bits != 0 {
		return fmt.Errorf("%w (bits %#x): open it read-only, or use a newer program", ErrReadOnlyFeature, bits)
	}
	return nil
}

func (f Features) String() string {
	return fmt.Sprintf("compatible %#x, read-only-compatible %#x, incompatible %#x", f.Compatible, f.ReadOnly, f.Incompatible)
}
