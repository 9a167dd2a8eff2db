package backup

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
)

// recordSeed is a job that is copied.
func recordSeed() record {
	const job = "5b0f2b5e-0001-4d5c-9d0a-0000000000aa"
	return record{
		Version: recordVersion, Job: job, State: api.JobCopying, Reserve: api.ReserveRequest{Domain: "web", UUID: domain, Host: "hv1", Address: "hv1"},
		Reserved: 1, Started: 2, Manifest: &api.Manifest{
			Version: 1, Domain: "web", UUID: domain, Cut: job, Grade: api.GradeFS, Files: map[string][]byte{"nvram": {1}},
			Disks: []api.ManifestDisk{{Target: "vda", Volume: "web", UUID: domain, Size: 1 << 20, Snapshot: job}},
		},
	}
}

// A record that is taken for one can be told of, gone on with and written again, whatever is in it.
func FuzzRecord(f *testing.F) {
	seed := recordSeed()
	for _, change := range []func(*record){func(*record) {}, func(r *record) { r.State, r.Manifest = api.JobReserved, nil }, func(r *record) { r.State = api.JobDone }} {
		r := seed
		change(&r)
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b, seed.Job)
		if err != nil {
			return
		}
		if r.Job != seed.Job || !r.ended() && r.State != api.JobReserved && r.Manifest == nil {
			t.Fatalf("%+v", r)
		}
		n := &Node{jobs: map[string]*job{}}
		n.config.Log = zerolog.Nop()
		j := n.newJob(*r)
		s := j.status()
		for i, d := range s.Disks {
			if d.Size <= 0 || uuid.Validate(r.Manifest.Disks[i].Snapshot) != nil {
				t.Fatalf("%+v", d)
			}
		}
		_ = r.settled()
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := parseRecord(again, seed.Job); err != nil {
			t.Fatalf("written again it is none: %v", err)
		} else if once, err := json.Marshal(same); err != nil || !reflect.DeepEqual(again, once) {
			t.Fatalf("%s\n%s", again, once)
		}
	})
}

// A checkpoint that is taken for one is of pieces that can be.
func FuzzCheckpoint(f *testing.F) {
	f.Add([]byte(`{"pieces":[3,0],"piece":4194304,"seen":1,"read":1,"zero":0,"reused":0,"written":0}` + "\n" + `{"job":"x"}`))
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"pieces":[-1]}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, _, err := parseCheckpoint(b)
		if err != nil {
			return
		}
		for i := range p.Pieces {
			if done := p.done(i, 1<<30); done < 0 || done > 1<<30 {
				t.Errorf("%d of a GiB is done: %+v", done, p)
			}
		}
	})
}
