package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/virt-cow/virt-cow/internal/api"
)

// stores compares the catalogue with what is there.
func stores(ctx context.Context, h *Host) []Finding {
	l, err := h.api().Volumes(ctx)
	if err != nil {
		return skipped("the catalogue can't be asked for: %v", err)
	}
	var found []Finding
	var missing, odd []string
	known := map[string]bool{}
	for _, v := range l.Volumes {
		known[v.Store] = true
		if target, err := filepath.EvalSymlinks(v.Store); err == nil {
			known[target] = true
		}
		_, err := os.Stat(h.path(v.Store))
		if errors.Is(err, fs.ErrNotExist) || v.State == api.StateMissing {
			missing = append(missing, v.Name+" ("+v.Store+")")
		}
		if v.Error != "" {
			odd = append(odd, v.Name+": "+v.Error)
		}
	}
	if missing != nil {
		found = append(found, Finding{
			Result: Problem, Seen: "volumes whose store is not where it was: " + some(missing), Why: "they can't be served",
			Mend: "virt-cow volume scan # once the device or folder is visible again; to forget one: virt-cow volume delete --keep-store NAME",
		})
	}
	if odd != nil {
		found = append(found, Finding{
			Result: Problem, Seen: "volumes with an error: " + some(odd), Why: "they may not be served", Mend: "virt-cow volume show NAME",
		})
	}
	var unknown []string
	for _, f := range h.glob(h.Config.Config.StoreDir + "/*") {
		info, err := os.Lstat(h.path(f))
		if err == nil && info.Mode().IsRegular() && !known[f] && !strings.HasPrefix(filepath.Base(f), ".") {
			unknown = append(unknown, f)
		}
	}
	if unknown != nil {
		found = append(found, Finding{
			Result: Warning, Seen: "files among the stores that the catalogue does not know: " + some(unknown),
			Why:  "made by hand, or left by what was interrupted: they take room, and a volume in them is not found by its name",
			Mend: "virt-cow volume scan # takes up what is a store; for what is left: virt-cow store info FILE",
		})
	}
	if found != nil {
		return found
	}
	return well("all %d volumes of the catalogue have theirs", len(l.Volumes))
}
