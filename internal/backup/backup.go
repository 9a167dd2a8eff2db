// Package backup is the image node: it takes a backup from the moment its job is reserved to the moment it is in the archive and
// its snapshots are gone. docs/BACKUP.md says how the parts play together; what is here is the job.
//
//	state       what is durable                            a node that starts again
//	reserved    who asked                                  waits for the cut, for as long as it may take
//	queued      the manifest                               queues it
//	copying     and the checkpoint: what the archive has   goes on from the checkpoint
//	completing  all is in the archive                      asks the owners again, unless the backup is entered already
//	done        the backup's id                            has the snapshots removed that are not yet
//	failed      why                                        the same
//	cancelled                                              the same
//
// A job's record is durable before anybody is told of its state. The checkpoint says of each disk up to where the archive
// has it; only then is the owner told that it need keep nothing below (the cursor). So no crash of anybody loses what the
// backup still needs.
//
// What does not answer, archive, disk or owner, is waited for: an attempt ends, and the next one goes on from the checkpoint.
// After Patience without a step forward the job fails. What can't get better (a broken snapshot, a wrong passphrase) fails it
// at once.
//
// Lock order: job.writing (held while its record is written), then Node.mu (kept over no I/O).
package backup

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/peer"
)

var (
	// ErrBusy says that the domain has an unfinished backup already.
	ErrBusy = errors.New("a backup of this domain is under way")
	// ErrNotFound says that there is no such job.
	ErrNotFound = errors.New("no such job")
	// ErrInvalid says that a request can't be what was meant.
	ErrInvalid = errors.New("invalid request")
	// ErrForbidden says that who asks may not.
	ErrForbidden = errors.New("not allowed")
	// ErrState says that a job is not in the state that the request is for.
	ErrState = errors.New("the job has gone on")
	// ErrNotOurs says that another host does the archive's maintenance.
	ErrNotOurs = errors.New("not this host's to maintain")
	// ErrGivenUp says that waiting does not help: a snapshot that is broken, a passphrase that is wrong. What a Source or an
	// Archive returns wraps it where that is so.
	ErrGivenUp = errors.New("can't be completed")
)

// Source is a disk as it was at the cut. It is read by several goroutines at once.
type Source interface {
	io.ReaderAt
	// Extents tells what certainly reads as zeros.
	Extents(off, length int64) ([]blockdev.Extent, error)
	// Look is the last look: that all that was read from released on was as of the cut. It must begin after the reads have ended.
	// Bytes below released are in the archive.
	Look(ctx context.Context, released int64) (Standing, error)
	// Via says how it is read, api.JobDisk's Via and Why.
	Via() (via, why string)
	Close() error
}

// Standing is who has a volume, by its header.
type Standing struct {
	Owned   bool
	Epoch   uint32
	Address string // where the owner's daemon answers; may be empty
	Name    string // of its host, for people
}

// Sources finds disks.
type Sources interface {
	Open(ctx context.Context, d *api.ManifestDisk) (Source, error)
	// Owner reads who has the disk's volume.
	Owner(ctx context.Context, d *api.ManifestDisk) (Standing, error)
}

// Info is what a backup is of.
type Info struct {
	Job, Domain, UUID, Host, Grade string
	CutAt                          time.Time
}

// Archive is an open archive. It is opened for each attempt at a job.
type Archive interface {
	Begin(ctx context.Context, i Info) (Writer, error)
	// Resume goes on from a checkpoint.
	Resume(ctx context.Context, checkpoint []byte) (Writer, error)
	// Entered is the id of the backup that this job has entered, "" if it has not.
	Entered(ctx context.Context, job string) (string, error)
	// Maintain does the maintenance that is due, and says which: quick, full, "" for none. ErrNotOurs: another host does it.
	Maintain(ctx context.Context) (done string, err error)
	// Forget takes out what an unfinished backup has left.
	Forget(ctx context.Context, job string) error
	Close(ctx context.Context) error
}

// Writer is a backup that is being written.
type Writer interface {
	// Disk begins a disk, or goes on with it.
	Disk(name string, size, piece int64) (DiskWriter, error)
	// File adds a small file.
	File(ctx context.Context, name string, data []byte) error
	// Checkpoint makes all that was written durable.
	Checkpoint(ctx context.Context) ([]byte, error)
	// Finish enters the backup into the archive.
	Finish(ctx context.Context, manifest []byte) (id string, err error)
	// Stats are of the whole backup, also of what was done before Resume.
	Stats() Stats
	// Close lets go of it, to be resumed later if it was not finished.
	Close() error
}

// DiskWriter takes pieces in any order from several goroutines. nil is a piece of zeros.
type DiskWriter interface {
	Write(ctx context.Context, index int64, data []byte) error
}

// Stats are bytes.
type Stats struct {
	Reused  int64 `json:"reused"`
	Written int64 `json:"written"`
}

// Peers asks other hosts' daemons; peer.Client is one.
type Peers interface {
	Call(ctx context.Context, address, path string, in, out any) error
}

// Config is what a Node needs. Durations that are 0 have a default.
type Config struct {
	StateDir string                                                         // the journal is in a folder below
	Version  string                                                         // of the program, for who asks
	Archive  func(ctx context.Context, waits func(string)) (Archive, error) // waits is told for what it waits, "" for nothing
	Sources  Sources
	Peers    Peers
	Identity *peer.Identity // that disks are pulled with which are not seen here; nil: they are not
	Log      zerolog.Logger

	Jobs    int   // copied at once; default 2
	Rate    int64 // bytes a second of all jobs together; 0: no limit
	Readers int   // pieces of a job under way at once; default 4

	Piece      int64         // bytes, default 4 MiB
	Checkpoint time.Duration // between two, default 30 s
	Look       time.Duration // between two questions how full the snapshots are, default 5 s
	Patience   time.Duration // without a step forward, default an hour
	Reserve    time.Duration // that a cut may take, default half an hour
	Upkeep     time.Duration // between two looks at the archive: whether it can be reached, and whether maintenance is due; default 10 min
	Grace      time.Duration // after which a job that is cancelled and still at work has its place among Jobs no more, default 30 s
	Remove     time.Duration // for how long the owner is asked to remove snapshots, default a day
	Retry      time.Duration // the first pause, default a second; it doubles up to a minute
}

func (c *Config) defaults() {
	def(&c.Jobs, 2)
	def(&c.Readers, 4)
	def(&c.Piece, 4<<20)
	def(&c.Checkpoint, 30*time.Second)
	def(&c.Look, 5*time.Second)
	def(&c.Patience, time.Hour)
	def(&c.Reserve, 30*time.Minute)
	def(&c.Upkeep, 10*time.Minute)
	def(&c.Grace, 30*time.Second)
	def(&c.Remove, 24*time.Hour)
	def(&c.Retry, time.Second)
}

func def[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}
