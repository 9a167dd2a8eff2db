package daemon

import (
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
)

func TestWriteLatency(t *testing.T) {
	t.Parallel()
	h := func(fast, slow uint64) api.Histogram {
		var h api.Histogram
		h.Counts[7], h.Counts[13], h.Micros = fast, slow, 100*fast+5000*slow
		return h
	}
	before := writes{"a": {1, h(100, 0)}, "b": {1, h(50, 50)}}
	for name, c := range map[string]struct {
		now  writes
		want *api.WriteLatency
	}{
		"none answers":     {writes{}, nil},
		"none written":     {before, &api.WriteLatency{}},
		"one in a hundred": {writes{"a": {1, h(298, 2)}, "b": {1, h(50, 50)}}, &api.WriteLatency{Writes: 200, MeanMicros: 149, P99Micros: 128}},
		"more":             {writes{"a": {1, h(100, 0)}, "b": {1, h(147, 53)}}, &api.WriteLatency{Writes: 100, MeanMicros: 247, P99Micros: 8192}},
		"another engine":   {writes{"b": {2, h(10, 0)}}, &api.WriteLatency{Writes: 10, MeanMicros: 100, P99Micros: 128}},
	} {
		got := c.now.since(before)
		if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
