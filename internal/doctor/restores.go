package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/virt-cow/virt-cow/internal/restore"
)

// restores looks for restores of guests that were cut off.
func restores(_ context.Context, h *Host) []Finding {
	all, err := restore.JournalIn(h.path(h.Config.Config.StateDir)).CutOff()
	if err != nil {
		return unread(err)
	}
	var found []Finding
	for _, i := range all {
		var disks []string
		for _, d := range i.Disks {
			disks = append(disks, filepath.Clean(d.Path))
		}
		found = append(found, Finding{
			Result: Warning,
			Seen:   fmt.Sprintf("a restore of %s from backup %s, begun %s, was cut off", i.Domain, i.Backup, time.Unix(i.Begun, 0).Format(time.DateTime)),
			Why:    "the domain is not defined, and what there is of its disks takes room: " + strings.Join(disks, ", "),
			Mend:   "virt-cow restore clean " + quoteAll([]string{i.Domain}) + " # or the same restore again, with --force",
		})
	}
	if found != nil {
		return found
	}
	return well("none was cut off")
}
