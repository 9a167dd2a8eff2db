package archive

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/kopia/kopia/repo/object"
)

// FuzzToken holds what Checkpoint returned, and a journal may have spoiled, to what it must be.
func FuzzToken(f *testing.F) {
	f.Add([]byte(`{"version":1,"job":"x","seq":3}`))
	f.Add([]byte(`{"version":2,"job":"","seq":0}{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		token, err := parseToken(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(token)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseToken(again); err != nil || back != token || token.Job == "" || token.Seq == 0 {
			t.Errorf("%q is %+v, and that %+v: %v", b, token, back, err)
		}
	})
}

// FuzzIndex reads indexes as they may come from the archive. What is taken has no gaps.
func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"stream":"kopia:indirect","entries":[{"l":5,"o":"D13ea27f9ad891ad4a2edfa983906863d"},{"s":5,"l":1,"o":"Ix13ea27f9ad891ad4a2edfa983906863d"}]}`))
	f.Add([]byte(`{"stream":"kopia:indirect","entries":null}`))
	f.Add([]byte(`{"stream":"kopia:indirect","entries":[{"s":9223372036854775807,"l":9223372036854775807,"o":""}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		end := int64(0)
		err := parseIndex(bytes.NewReader(b), func(id object.ID, length int64) error {
			if end += length; length <= 0 || end < 0 || id == object.EmptyID {
				t.Errorf("%v of %d bytes", id, length)
			}
			return nil
		})
		_ = err
	})
}

// FuzzState reads state.json, and takes over a disk's segments as far as they are possible.
func FuzzState(f *testing.F) {
	f.Add([]byte(`{"version":1,"seq":1,"disks":[{"name":"vda","size":1048576,"piece":1048576,"segments":[{"id":"Ix13ea27f9ad891ad4a2edfa983906863d","runs":[[0,1]]}]}]}`))
	f.Add([]byte(`{"version":1,"seq":1,"disks":[{"segments":[{"runs":[[-1,9223372036854775807]]}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseState(b)
		if err == nil && (st.Version != 1 || st.Seq == 0) {
			t.Errorf("%+v", st)
		}
	})
}
