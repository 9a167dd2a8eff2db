package plugin

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// soon is when a plugin is killed to see that the next one works.
const soon = 20 * time.Millisecond

// events exercises an event plugin.
func (k *checker) events(ctx context.Context) {
	name := scratch()
	sample := Event{
		Volume: Volume{Name: name, UUID: "00000000-0000-4000-8000-000000000001", Store: "/dev/mapper/" + name},
		Domain: Domain{Name: name, UUID: "00000000-0000-4000-8000-000000000002"}, Target: "vdb",
	}
	for _, event := range Before {
		sample.Event = event
		k.before(ctx, sample)
	}
	for _, event := range After {
		e := sample
		if e.Event = event; event == EventFailed {
			e.Error = "this is only a check of the plugin"
		}
		k.mustExit0(ctx, event, event, k.document(e, nil), 0)
	}
	sample.Event = EventAttached
	k.mustExit0(ctx, "an event of a later version", "no-such-event", k.document(Event{Event: "no-such-event"}, nil), 0)
	k.mustExit0(ctx, "a later schema with more fields", EventAttached, k.future(sample, nil), 0)
	k.mustExit0(ctx, "an event without volume and domain", EventFailed, k.document(Event{Event: EventFailed}, nil), 0)
	for _, what := range slices.Sorted(maps.Keys(garbage)) {
		start := time.Now()
		_, _, err := k.call(ctx, EventAttached, garbage[what], 0)
		k.report(what+": ends by itself", ended(err), took(start))
	}
	k.twice(ctx, sample)
	_, _, err := k.call(ctx, EventAttached, k.document(sample, nil), soon)
	if err == nil || errors.Is(err, errTimeout) {
		k.mustExit0(ctx, "works after it was killed half-way", EventAttached, k.document(sample, nil), 0)
	} else {
		k.report("works after it was killed half-way", err, "")
	}
}

// before asks for a yes or a no with a reason: both are well.
func (k *checker) before(ctx context.Context, e Event) {
	start := time.Now()
	out, said, err := k.call(ctx, e.Event, k.document(e, nil), 0)
	if said == "" {
		said = printable(out[bytes.LastIndexByte(bytes.TrimRight(out, "\n"), '\n')+1:])
	}
	detail := "allows it, " + took(start)
	if exited(err) > 0 {
		detail = fmt.Sprintf("does not allow it (%v), %s: %s", err, took(start), said)
		err = nil
		if said == "" {
			err = errors.New("it vetoes without a line that says why")
		}
	}
	k.report(e.Event+": says yes, or no and why", err, detail)
}

func (k *checker) mustExit0(ctx context.Context, what, event string, doc []byte, timeout time.Duration) {
	start := time.Now()
	_, said, err := k.call(ctx, event, doc, timeout)
	if exited(err) > 0 && said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	k.report(what+": exit 0", err, took(start))
}

// twice runs two at the same time, as for two volumes.
func (k *checker) twice(ctx context.Context, e Event) {
	start := time.Now()
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i := range errs {
		e.Volume.Name = scratch()
		doc := k.document(e, nil)
		wg.Go(func() { _, _, errs[i] = k.call(ctx, e.Event, doc, 0) })
	}
	wg.Wait()
	k.report("two at the same time: exit 0", cmp.Or(errs...), took(start))
}
