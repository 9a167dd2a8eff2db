package cowfmt

import "errors"

// What a store is refused for; test with errors.Is.
var (
	// ErrNotStore says that there is no header at all: neither copy has the magic.
	ErrNotStore = errors.New("not a virt-cow store")
	// ErrCorrupt says that something was a header, sector or slot, or should be one, and its check
	// sum or its structure is wrong.
	ErrCorrupt = errors.New("corrupt")
	// ErrVersion says that the header is intact but of a format version this program doesn't know.
	ErrVersion = errors.New("unknown format version")
	// ErrUnknownFeature says that an incompatible feature or a critical record isn't known here.
	ErrUnknownFeature = errors.New("unknown incompatible feature")
	// ErrReadOnlyFeature says that the store may be read but not written by this program.
	ErrReadOnlyFeature = errors.New("unknown feature allows only reading")
	// ErrInvalid says that a field is out of bounds or contradicts another.
	ErrInvalid = errors.New("invalid")
	// ErrStale says that something intact belongs to another epoch than the header read with it: the
	// older of two header copies, or a table sector from an earlier life of its area.
	ErrStale = errors.New("stale")
)
