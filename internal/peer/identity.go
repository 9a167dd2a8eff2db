package peer

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// Identity is who this host is and whom it believes. It follows its files: a renewed certificate is in use from the next
// connection on.
type Identity struct {
	files Files
	log   zerolog.Logger
	now   func() time.Time

	mu      sync.Mutex
	current *Certificates // nil: never could be read
	failure error         // of the last reading; nil if current is of the files as they are
	seen    [3]stamp
	settled bool // the files were old enough when they were read that a change since must show in their stamps
}

// stamp tells one state of a file from another.
type stamp struct {
	ino          uint64
	size         int64
	mtime, ctime unix.Timespec
	err          error
}

// settleTime is longer than what the clock of file systems takes to tick.
const settleTime = 2 * time.Second

// NewIdentity reads the files. It succeeds even if they can't be read: they may come later, and until then every
// connection fails and says why.
func NewIdentity(f Files, log zerolog.Logger) *Identity {
	id := &Identity{files: f, log: log, now: time.Now}
	if c, err := id.certificates(); errors.Is(err, fs.ErrNotExist) { // as on hosts that have no live migration
		log.Info().Err(err).Msg("no certificate to show other hosts: no live migration of guests with volumes")
	} else if err != nil {
		log.Warn().Err(err).Msg("no certificate to show other hosts: no live migration of guests with volumes")
	} else if names, err := c.Check(id.now()); err != nil {
		log.Warn().Err(err).Msg("other hosts will not believe this host's certificate")
	} else {
		log.Info().Str("file", f.Cert).Stringer("names", names).Time("until", c.Leaf.NotAfter).Msg("certificate for other hosts")
	}
	return id
}

// Names are what this host's certificate calls it; an error says why other hosts would not believe it.
func (id *Identity) Names() (Names, error) {
	c, err := id.certificates()
	if err != nil {
		return Names{}, err
	}
	return c.Check(id.now())
}

// certificates are those in the files, or, while these are broken, those that were there before.
func (id *Identity) certificates() (*Certificates, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	stamps := [3]stamp{stampOf(id.files.CA), stampOf(id.files.Cert), stampOf(id.files.Key)}
	if stamps != id.seen || !id.settled {
		id.seen, id.settled = stamps, settled(stamps, time.Now())
		id.reload()
	}
	if id.current == nil {
		return nil, id.failure
	}
	return id.current, nil
}

func (id *Identity) reload() {
	next, err := Read(id.files)
	if err == nil && id.current != nil {
		// A certificate that no other host would believe takes the place of none that is good.
		if _, bad := next.Check(id.now()); bad != nil {
			if _, was := id.current.Check(id.now()); was == nil {
				err = bad
			}
		}
	}
	if err != nil {
		if id.current != nil && (id.failure == nil || id.failure.Error() != err.Error()) {
			id.log.Error().Err(err).Msg("new certificate is no good: the one before stays in use")
		}
		id.failure = err
		return
	}
	if id.current != nil && (id.failure != nil || !next.Leaf.Equal(id.current.Leaf)) {
		id.log.Info().Str("file", id.files.Cert).Time("until", next.Leaf.NotAfter).Msg("certificate read again")
	}
	id.current, id.failure = next, nil
}

func stampOf(path string) stamp {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return stamp{err: err} // an Errno, comparable
	}
	return stamp{ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

func settled(stamps [3]stamp, now time.Time) bool {
	for _, s := range stamps {
		if s.err == nil && now.Sub(time.Unix(s.ctime.Unix())) < settleTime {
			return false
		}
	}
	return true
}

// String names the file of the certificate.
func (id *Identity) String() string { return fmt.Sprint("certificate ", id.files.Cert) }
