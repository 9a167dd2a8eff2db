package backup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/durable"
)

// recordVersion is the version of a record's format.
const recordVersion = 1

// record is what the journal has of a job.
type record struct {
	Version  int                `json:"version"`
	Job      string             `json:"job"` // UUID
	State    string             `json:"state"`
	Error    string             `json:"error,omitempty"`
	Backup   string             `json:"backup,omitempty"`
	Reserve  api.ReserveRequest `json:"reserve"`
	Reserved int64              `json:"reserved"` // Unix seconds, as the two below
	Started  int64              `json:"started,omitempty"`
	Ended    int64              `json:"ended,omitempty"`
	Manifest *api.Manifest      `json:"manifest,omitempty"`
	Rate     int64              `json:"rate,omitempty"`
	Via      []via              `json:"via,omitempty"`      // how each disk was read last
	Removed  []string           `json:"removed,omitempty"`  // snapshots that are gone
	LeftOver bool               `json:"leftOver,omitempty"` // owners were asked for long enough: it is theirs to remove what is stale
	Stored   bool               `json:"stored,omitempty"`   // the archive may have what was copied, though nothing comes of it
	Progress progress           `json:"progress"`           // at the end
}

// via is how a disk is read: api.JobDisk's Via and Why.
type via struct {
	Via string `json:"via"`
	Why string `json:"why,omitempty"`
}

// progress is how far a job is, as of its last checkpoint.
type progress struct {
	Pieces []int64 `json:"pieces,omitempty"` // of each disk, from its beginning, that are in the archive
	Piece  int64   `json:"piece,omitempty"`  // bytes
	Seen   int64   `json:"seen"`
	Read   int64   `json:"read"`
	Zero   int64   `json:"zero"`
	Stats
	Owners map[string]string `json:"owners,omitempty"` // by snapshot, of disks that are pulled: the last address; never changed, only replaced
}

func (r *record) ended() bool {
	return r.State == api.JobDone || r.State == api.JobFailed || r.State == api.JobCancelled
}

// settled says that nothing is left to do for the job.
func (r *record) settled() bool {
	return r.ended() && !r.Stored && (r.LeftOver || r.removed())
}

// removed says that all snapshots are gone.
func (r *record) removed() bool {
	return r.Manifest == nil || !slices.ContainsFunc(r.Manifest.Disks, func(d api.ManifestDisk) bool { return !slices.Contains(r.Removed, d.Snapshot) })
}

// journal is a folder with a record a job, and a checkpoint while it is copied.
type journal struct{ dir string }

const (
	recordSuffix     = ".json"
	checkpointSuffix = ".checkpoint"
	maxRecord        = 64 << 20 // bytes
)

func openJournal(stateDir string) (*journal, error) {
	j := &journal{filepath.Join(stateDir, "jobs")}
	if err := durable.MakeDirs(j.dir, 0o700); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	return j, nil
}

// load reads all records. One that is damaged is left where it is and told: its job is unknown then, and so the owners remove its
// snapshots.
func (j *journal) load(damaged func(path string, err error)) ([]record, error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	var all []record
	for _, e := range entries {
		path := filepath.Join(j.dir, e.Name())
		id, is := strings.CutSuffix(e.Name(), recordSuffix)
		switch {
		case strings.HasSuffix(e.Name(), durable.NewSuffix):
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("journal: %w", err)
			}
		case is:
			r, err := readRecord(path, id)
			if err != nil {
				damaged(path, err)
				continue
			}
			all = append(all, *r)
		}
	}
	return all, nil
}

func readRecord(path, id string) (*record, error) {
	b, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	return parseRecord(b, id)
}

// parseRecord reads the record of a job. What it returns is as Reserve and Start would have let it in.
func parseRecord(b []byte, id string) (*record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	if r.Manifest != nil {
		if err := checkManifest(r.Manifest); err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
	}
	switch parsed, err := uuid.Parse(r.Job); {
	case r.Version != recordVersion:
		return nil, fmt.Errorf("version %d, this program knows %d", r.Version, recordVersion)
	case err != nil || parsed.String() != id:
		return nil, fmt.Errorf("it is of job %q", r.Job)
	case !api.IsUUID(r.Reserve.UUID) || r.Manifest != nil && (r.Manifest.UUID != r.Reserve.UUID || r.Manifest.Cut != r.Job):
		return nil, fmt.Errorf("it is of domain %q, and its manifest is not", r.Reserve.UUID)
	case r.Rate < 0 || r.Reserve.WaitSeconds < 0 || r.Reserve.WaitSeconds > api.MaxWait:
		return nil, fmt.Errorf("rate %d, waitSeconds %d", r.Rate, r.Reserve.WaitSeconds)
	case r.Manifest == nil && r.State != api.JobReserved && !r.ended():
		return nil, fmt.Errorf("state %q without a manifest", r.State)
	}
	switch r.State {
	case api.JobReserved, api.JobQueued, api.JobCopying, api.JobCompleting, api.JobDone, api.JobFailed, api.JobCancelled:
		return &r, nil
	}
	return nil, fmt.Errorf("state %q is not known", r.State)
}

func readBounded(path string) ([]byte, error) {
	switch st, err := os.Lstat(path); { // opening a FIFO would hang
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, errors.New("not a regular file")
	case st.Size() > maxRecord:
		return nil, errors.New("too large")
	}
	return os.ReadFile(path)
}

func (j *journal) save(r *record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = durable.Replace(filepath.Join(j.dir, r.Job+recordSuffix), append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("job %s: record: %w", r.Job, err)
	}
	return nil
}

func (j *journal) remove(job string) error {
	return errors.Join(j.dropCheckpoint(job), durable.Remove(filepath.Join(j.dir, job+recordSuffix)))
}

// saveCheckpoint writes how far the job is, and the archive's own checkpoint behind it: one file, so that they belong together.
func (j *journal) saveCheckpoint(job string, p *progress, archive []byte) error {
	b, err := json.Marshal(p)
	if err == nil {
		err = durable.Replace(filepath.Join(j.dir, job+checkpointSuffix), append(append(b, '\n'), archive...), 0o600)
	}
	if err != nil {
		return fmt.Errorf("job %s: checkpoint: %w", job, err)
	}
	return nil
}

// checkpoint reads the last one. Without one all are zero.
func (j *journal) checkpoint(job string) (p progress, archive []byte, err error) {
	path := filepath.Join(j.dir, job+checkpointSuffix)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return p, nil, nil
	}
	if err != nil {
		return p, nil, err
	}
	if p, archive, err = parseCheckpoint(b); err != nil {
		return progress{}, nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, archive, nil
}

func parseCheckpoint(b []byte) (p progress, archive []byte, err error) {
	line, archive, found := bytes.Cut(b, []byte{'\n'})
	if !found {
		return p, nil, errors.New("no checkpoint")
	}
	if err := json.Unmarshal(line, &p); err != nil {
		return p, nil, err
	}
	for _, n := range p.Pieces {
		if n < 0 || p.Piece <= 0 || n > cowfmt.MaxSize/p.Piece+1 {
			return p, nil, fmt.Errorf("%d pieces of %d bytes", n, p.Piece)
		}
	}
	return p, archive, nil
}

func (j *journal) dropCheckpoint(job string) error {
	return durable.Remove(filepath.Join(j.dir, job+checkpointSuffix))
}
