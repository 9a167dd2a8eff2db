package cut

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/durable"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// The phases of a cut.
const (
	phaseMaking = "making"
	phaseMade   = "made" // by all volumes; Payload is to be handed over
	phaseUndo   = "undo"
)

const recordVersion = 1

// record is a cut in the journal. In memory it is changed under Cutter.mu, and only by whoever works on the cut.
type record struct {
	Version   int             `json:"version"`
	Cut       string          `json:"cut"` // UUID
	Phase     string          `json:"phase"`
	Domain    libvirtx.Domain `json:"domain"`
	Snapshots []Snapshot      `json:"snapshots"`
	Frozen    bool            `json:"frozen,omitempty"` // the guest may be frozen
	Payload   json.RawMessage `json:"payload,omitempty"`

	owned bool // Make is at work on it
}

// journal is a folder with a file a cut.
type journal struct{ dir string }

const suffix = ".json"

func openJournal(dir string, log zerolog.Logger) (journal, map[string]*record, error) {
	j := journal{dir}
	if err := durable.MakeDirs(dir, 0o700); err != nil {
		return j, nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return j, nil, err
	}
	records := map[string]*record{}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue // one that was being written at a crash: what it was to tell of was not begun
		}
		r, err := readRecord(filepath.Join(dir, e.Name()), name)
		if err != nil {
			// What it tells of can't be known: a guest may be frozen, which doctor can't see either.
			log.Error().Err(err).Str("file", filepath.Join(dir, e.Name())).
				Msg("a cut's record can't be read: see that no guest is frozen (virsh domfsthaw), and that no snapshot is left (virt-cow doctor)")
			continue
		}
		records[r.Cut] = r
	}
	return j, records, nil
}

// readRecord reads one of the cut that its name says.
func readRecord(path, cut string) (*record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return decode(b, cut)
}

func decode(b []byte, cut string) (*record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("version %d, this program knows %d", r.Version, recordVersion)
	}
	if r.Cut != cut {
		return nil, fmt.Errorf("is of cut %q", r.Cut)
	}
	if !slices.Contains([]string{phaseMaking, phaseMade, phaseUndo}, r.Phase) {
		return nil, fmt.Errorf("phase %q", r.Phase)
	}
	errs := []error{canonical(r.Cut)}
	for _, s := range r.Snapshots {
		errs = append(errs, canonical(s.Volume), canonical(s.Snapshot))
	}
	return &r, errors.Join(errs...)
}

// canonical refuses a UUID that is not as it is printed: it becomes a file's name.
func canonical(id string) error {
	if !api.IsUUID(id) {
		return fmt.Errorf("%q is no UUID in lower case with hyphens", id)
	}
	return nil
}

func (j journal) path(cut string) string { return filepath.Join(j.dir, cut+suffix) }

// put makes a record durable as it is.
func (j journal) put(r *record) error {
	r.Version = recordVersion
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := durable.Replace(j.path(r.Cut), b, 0o600); err != nil {
		return fmt.Errorf("journal of cuts: %w", err)
	}
	return nil
}

func (j journal) remove(cut string) error { return durable.Remove(j.path(cut)) }
