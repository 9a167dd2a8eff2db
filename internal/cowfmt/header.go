package cowfmt

import "github.com/google/uuid"

// Role is what a store is for.
type Role uint8

// The roles of a store.
const (
	RoleClone    Role = 1 // a volume of its own: chunks with a flag are here, the others in the master
	RoleSnapshot Role = 2 // old chunks of an origin
	RoleState    Role = 3 // header only, beside a raw origin
)

// CacheMode says whether the owner may trust its exception cache.
type CacheMode uint8

// The modes of the exception cache.
const (
	CacheOn  CacheMode = 1 // one owner, the table in memory is the truth until it is committed
	CacheOff CacheMode = 2 // several hosts may have the volume open; every flag is on the disk before its write is acknowledged
)

// LocatorKind says how to open what an Address names. It is never guessed.
type LocatorKind uint8

// The kinds of a locator.
const (
	LocatorRaw     LocatorKind = 1 // path of a raw file or block device
	LocatorStore   LocatorKind = 2 // path of a store
	LocatorNBD     LocatorKind = 3 // NBD URI
	LocatorArchive LocatorKind = 4 // URI of a disk in a backup
)

// Locator says where something was found last; Identity says whether it is the right thing.
type Locator struct {
	Kind    LocatorKind
	Address string // path or URI, UTF-8, at most MaxAddress bytes
}

// IdentityKind says how a base is known again.
type IdentityKind uint8

// The kinds of an identity. A path or a time stamp is never one.
const (
	IdentityStore   IdentityKind = 1 // UUID, Opens and Size of a store
	IdentityWWID    IdentityKind = 2 // WWID and Size of a LUN
	IdentitySamples IdentityKind = 3 // Size and a SHA-256 over samples of the content
)

// Identity is how a master or origin is known again, wherever it is found. Fields that another kind uses
// are zero.
type Identity struct {
	Kind   IdentityKind
	Size   int64     // bytes
	UUID   uuid.UUID // IdentityStore
	Opens  uint64    // IdentityStore: how often it had been opened for writing
	WWID   string    // IdentityWWID, at most MaxWWID bytes
	Digest [32]byte  // IdentitySamples
}

// Owner is the one engine that may write the header.
type Owner struct {
	Host     uuid.UUID // the host's UUID
	Boot     uuid.UUID // its boot id (Linux: /proc/sys/kernel/random/boot_id)
	Instance uuid.UUID // the engine process
	HostName string    // for people, may be empty, at most MaxHostName bytes
	Address  string    // where the host's daemon answers, may be empty, at most MaxHostAddress bytes
	Since    int64     // Unix seconds
}

// Grant is the owner's durable permission for one other host to have the volume open with the cache off.
// Host and Boot say to which boot of the other host it was given; ID is also the instance of the owner that its engine
// becomes at a hand-over.
type Grant struct {
	ID       uuid.UUID
	Host     uuid.UUID
	Boot     uuid.UUID
	HostName string
	Address  string
	Slot     uint16 // the host's migration slot, below MigrationSlots
	Since    int64  // Unix seconds
}

// StackKind says what an entry of the stack is.
type StackKind uint8

// The kinds of stack entries.
const (
	StackSnapshot StackKind = 1 // a store that holds old chunks
	StackTracker  StackKind = 2 // a bitmap of what changed since a backup
)

// StackEntry is one snapshot or tracker that must be open whenever the volume is. Youngest last.
type StackEntry struct {
	Kind       StackKind
	State      uint8     // StackPending, StackActive, StackBroken
	OnError    uint8     // OnErrorBreakSnapshot, OnErrorBreakGuestWrite
	Timeout    uint32    // milliseconds that saving a chunk may take; 0: the program's own
	UUID       uuid.UUID // of its store
	Generation uint64    // of its table
	Cursor     int64     // bytes below this are released: no longer copied before a write, refused to readers
	CutID      uuid.UUID // the cut it was made in
	Locator    Locator
}

// The states of a stack entry.
const (
	StackActive  uint8 = 1 // unbroken since its cut
	StackBroken  uint8 = 2 // a write went past it; durable before that write
	StackPending uint8 = 3 // being made; its cut has not been made yet
)

// What happens when a chunk can't be saved before the guest's write.
const (
	OnErrorBreakSnapshot   uint8 = 0 // the snapshot is broken, the write goes on
	OnErrorBreakGuestWrite uint8 = 1 // the write fails, the snapshot stays
)

// Progress is an operation that must be gone on with or undone when the store is opened next.
type Progress struct {
	Kind uint16 // ProgressNone and so on; one that is not known here: do not write to the store
	Data []byte // at most MaxProgress bytes
}

// The kinds of Progress. What is in Data is defined where the operation is.
const (
	ProgressNone     uint16 = 0
	ProgressCreate   uint16 = 1 // the store is being made and not yet good
	ProgressReset    uint16 = 2 // the table is being begun anew under the next generation
	ProgressTakeover uint16 = 3 // the table is being written to the other area
	ProgressResize   uint16 = 4 // the volume is being grown
	ProgressMerge    uint16 = 5 // a snapshot's chunks are being copied back into the origin
	ProgressCut      uint16 = 6 // reserved: the stack changes in one header write
	ProgressRemove   uint16 = 7 // reserved
)

// Features are bits that say what a reader of a store must know.
type Features struct {
	Compatible   uint64 // unknown bits: go on
	ReadOnly     uint64 // unknown bits: open for reading only
	Incompatible uint64 // unknown bits: refuse
}

// Header is the truth of a store. Lengths and offsets are bytes.
type Header struct {
	Features   Features
	UUID       uuid.UUID
	Name       string // of the volume; see ValidName
	Role       Role
	Size       int64 // of the volume, a multiple of 512
	ChunkSize  int64 // a power of two, 4 KiB to 1 MiB
	Layout     Layout
	Created    int64  // Unix seconds
	Epoch      uint32 // moves on with each change of owner between hosts
	Sequence   uint64 // moves on with each write of the header
	Generation uint64 // moves on when the table starts anew from all clear
	Opens      uint64 // how often the store was opened for writing
	Cache      CacheMode
	CutLoose   bool // clone: every chunk is here, the master is not needed, the table is not consulted

	ActiveTable int    // 0 or 1: which table area is in use
	TableEpoch  uint32 // the epoch at which the active table area was begun
	TableGroups []byte // bit g (LSB first): group g of the active table area was initialised; others are all clear and hold anything

	Master         *Locator
	MasterIdentity *Identity
	Origin         *Locator
	OriginIdentity *Identity
	Cut            uuid.UUID // snapshot: the cut it was made for
	Owner          *Owner
	Grants         []Grant
	Stack          []StackEntry // oldest first
	Progress       Progress
	Extra          []Record // of newer programs, kept as they are
}

// Layout is where the parts of a store are, in bytes from its start. See docs/FORMAT.md.
type Layout struct {
	Table        [2]int64 // offsets of the two table areas; 0 for RoleState
	TableSectors int64    // capacity of each area, in 512-byte sectors, growth reserved
	Frozen       int64    // offset of the frozen table of a clone's snapshot, an area of the same size; 0: there is none
	Data         int64    // offset of the data area, a multiple of 1 MiB; 0 for RoleState
}
