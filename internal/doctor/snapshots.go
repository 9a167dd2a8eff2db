package doctor

import (
	"context"
	"fmt"
	"strings"

	"github.com/virt-cow/virt-cow/internal/api"
)

// snapshots looks for those that nobody needs any more, and for guests that a backup may have left frozen.
func snapshots(_ context.Context, h *Host) []Finding {
	if h.daemon == nil {
		return skipped("the daemon does not answer, and it is the one that knows")
	}
	var found []Finding
	for _, b := range h.daemon.Backups {
		if b.MaybeFrozen {
			found = append(found, Finding{
				Result: Problem, Seen: "the guest " + b.Domain + " may be frozen: it could not be thawed after the cut of its backup",
				Why:  "what it writes waits until it is thawed; the daemon tries on, and needs the guest's agent for it",
				Mend: "virsh domfsthaw " + quoteAll([]string{b.Domain}) + " # if its agent does not run, see to that in the guest",
			})
		}
	}
	for _, v := range h.daemon.Volumes {
		for _, id := range v.MissingSnapshots {
			found = append(found, Finding{
				Result: Problem, Seen: fmt.Sprintf("the store of snapshot %s of volume %s is not on this host", id, v.Volume),
				Why: "the backup was made with --on-error=break-guest-write: the volume is not opened without its snapshot, and its guest does not start",
				Mend: fmt.Sprintf("virt-cow store break-snapshot %s %s # if it is lost for good, which gives that backup up; if it is only away: "+
					"bring it back, then virt-cow volume scan", quote(v.Store), id),
			})
		}
	}
	for _, s := range h.daemon.Snapshots {
		switch {
		case s.Stale:
			found = append(found, Finding{
				Result: Warning, Seen: "a snapshot of " + s.Volume + " is left: " + s.Why,
				Why:  "as long as it is there each first write of the guest is slower, and its store " + s.Store + " is in use",
				Mend: "virt-cow status # the daemon tries on; a volume that another host has is that one's to mend",
			})
		case s.State == api.SnapshotBroken || s.Why != "":
			found = append(found, Finding{
				Result: Warning, Seen: fmt.Sprintf("a snapshot of %s (job %s): %s", s.Volume, s.Job, broken(s)),
				Why: "its backup fails, or nobody takes it away while the image node does not answer", Mend: "virt-cow backup jobs # on a host that has the image node configured, or on the image node",
			})
		}
	}
	if found != nil {
		return found
	}
	return well("%d, all of backups at work", len(h.daemon.Snapshots))
}

func broken(s api.SnapshotNote) string {
	var parts []string
	if s.State == api.SnapshotBroken {
		parts = append(parts, "it is broken")
	}
	if s.Why != "" {
		parts = append(parts, s.Why)
	}
	return strings.Join(parts, ", ")
}
