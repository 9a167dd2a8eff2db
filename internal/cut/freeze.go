package cut

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// freezing is a guest that was to be frozen for a cut.
type freezing struct {
	failed string        // why the freeze itself was no good; "" if it was
	began  chan struct{} // closed to have it thawed; nil: there is nothing to thaw
	once   sync.Once
	inCut  bool          // it was not thawed yet when all volumes were suspended
	done   chan struct{} // closed when the first thaw was tried
	why    string        // no better than a power cut; good once done is closed
}

// over has the guest thawed. inCut: all volumes are suspended.
func (f *freezing) over(inCut bool) {
	if f.began != nil {
		f.once.Do(func() {
			f.inCut = inCut
			close(f.began)
		})
	}
}

// wait returns once a thaw was tried, with why the cut is no better than a power cut, "" if it is.
func (f *freezing) wait() string {
	if f.began != nil {
		<-f.done
	}
	if f.failed != "" {
		return f.failed
	}
	return f.why
}

// freeze freezes the guest, and sees to it that it is thawed: when over is called, or after FrozenFor. An error is one of the
// journal, or of ready: then nothing was frozen.
func (k *Cutter) freeze(ctx context.Context, rec *record, r Request, ready func(context.Context) error) (*freezing, error) {
	if err := k.change(rec, func(rec *record) { rec.Frozen = true }); err != nil {
		return nil, err
	}
	// A guest that migrates away frozen is its next host's to thaw. Who grants a volume from here on tells that host; who did so
	// before is found now.
	if err := ready(ctx); err != nil {
		k.thawed(rec)
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, r.FreezeTimeout)
	n, err := k.c.Guests.Freeze(asking, r.Domain)
	cancel()
	f := &freezing{}
	switch {
	case errors.Is(err, ErrNotFrozen):
		f.failed = "its file systems could not be frozen: " + err.Error()
		k.thawed(rec)
		return f, nil
	case err != nil:
		f.failed = "its file systems may not have been frozen: " + err.Error()
	case n == 0:
		f.failed = "the guest has no file system that can be frozen"
	}
	f.began, f.done = make(chan struct{}), make(chan struct{})
	go k.thawInTime(context.WithoutCancel(ctx), rec, r.FrozenFor, f, n) // Make waits for it
	return f, nil
}

// thawInTime thaws the guest when it is time, once: what is not certain then is Run's.
func (k *Cutter) thawInTime(ctx context.Context, rec *record, most time.Duration, f *freezing, frozen int) {
	since := time.Now()
	late := time.AfterFunc(most, func() { f.over(false) })
	<-f.began
	late.Stop()
	thawed, err := k.thaw(ctx, rec)
	took := time.Since(since)
	switch {
	case !f.inCut:
		f.why = fmt.Sprintf("it had to be thawed before all volumes were suspended, after %s", took.Round(time.Millisecond))
	case errors.Is(err, ErrNotFrozen):
		f.why = "it was thawed by something else before the cut was over"
	case err != nil:
		f.why = "it could not be thawed: " + err.Error()
	case thawed < frozen:
		f.why = fmt.Sprintf("of %d file systems that were frozen only %d were so at the end: something else has thawed the others", frozen, thawed)
	case took > most:
		f.why = fmt.Sprintf("it was frozen for %s, longer than %s", took.Round(time.Millisecond), most)
	}
	close(f.done)
}

// thawTimeout bounds one attempt.
const thawTimeout = 10 * time.Second

// thawBackoff is how often a guest is thawed of which it is not certain that it is.
var thawBackoff = libvirtx.Backoff{Min: 200 * time.Millisecond, Max: 15 * time.Second}

// thaw tries once to thaw a guest, and notes it if that is certain then.
func (k *Cutter) thaw(ctx context.Context, rec *record) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, thawTimeout)
	defer cancel()
	n, err := k.c.Guests.Thaw(ctx, rec.Domain)
	if err != nil && !errors.Is(err, ErrNotFrozen) {
		k.c.Log.Error().Err(err).Str("domain", rec.Domain.Name).Str("cut", rec.Cut).Msg("a guest may be frozen and can't be thawed, trying on")
		return n, err
	}
	k.thawed(rec)
	return n, err
}

// thawed notes that a guest is not frozen.
func (k *Cutter) thawed(rec *record) {
	if err := k.change(rec, func(rec *record) { rec.Frozen = false }); err != nil {
		k.c.Log.Warn().Err(err).Str("domain", rec.Domain.Name).Msg("a guest that is not frozen stands as frozen in the journal: the next daemon thaws it once more")
	}
}
