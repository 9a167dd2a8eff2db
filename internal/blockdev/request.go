package blockdev

// Op is what a request asks for.
type Op uint8

// The requests a guest makes of its disk.
const (
	OpRead Op = iota
	OpWrite
	OpFlush       // everything acknowledged before it survives a power cut
	OpTrim        // the guest no longer needs these bytes; may do nothing
	OpWriteZeroes // these bytes read as zeros afterwards
)

func (o Op) String() string {
	return [...]string{"read", "write", "flush", "trim", "write-zeroes"}[o]
}

// Request is one guest request on its way through the engine. Off and Length are bytes, multiples of
// SectorSize. The one who submits it owns it again once Done was called.
type Request struct {
	Op     Op
	FUA    bool // this write (and no other) is durable before Done
	NoHole bool // write-zeroes: keep the room allocated
	Off    int64
	Length int64
	Buf    []byte // read: filled; write: the data; Length bytes, memory aligned as Alloc gives it
	Ring   Ring   // where the submitting thread waits for I/O, or nil: then everything slow is done on goroutines

	// Done is called exactly once, perhaps before Submit returns. It must not block. Detached tells it
	// where: false, on the thread that submits to and waits on Ring; true, on any goroutine.
	Done     func(r *Request, err error)
	Detached bool
}

// IO is one read or write of an open file through a Ring.
type IO struct {
	Fd    int
	Write bool
	DSync bool // write: durable when done
	Buf   []byte
	Off   int64
	Done  func(io *IO, result int32) // bytes moved, or a negative errno; on the ring's thread
}

// Ring carries out reads and writes without blocking. It belongs to one thread: Submit is called there
// and Done runs there.
type Ring interface {
	Submit(io *IO)
}
