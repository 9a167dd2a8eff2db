package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/virt-cow/virt-cow/internal/api"
)

// orphans looks for what is left in the run folder: sockets nobody listens on, engines and specs that the daemon does
// not know.
func orphans(ctx context.Context, h *Host) []Finding {
	dir := h.Config.Config.RunDir
	listening, err := h.listening()
	if err != nil {
		return unread(err)
	}
	known := map[string]bool{}
	if h.daemon != nil {
		for _, v := range h.daemon.Volumes {
			known[v.Volume] = true
		}
	}
	var dead, strangers, specs []string
	for _, path := range slices.Concat(h.glob(dir+"/*.sock"), h.glob(dir+"/*.ctl")) {
		name := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(path), ".sock"), ".ctl")
		switch {
		case filepath.Base(path) == api.DaemonSocket:
			if !listening[path] && h.daemon == nil {
				dead = append(dead, path)
			}
		case known[name]: // its engine may be about to be started again: the daemon's affair
		case !listening[path]:
			dead = append(dead, path)
		case strings.HasSuffix(path, ".ctl") && h.daemon != nil:
			strangers = append(strangers, name)
		}
	}
	for _, path := range h.glob(dir + "/*" + api.SpecSuffix) {
		name := strings.TrimSuffix(filepath.Base(path), api.SpecSuffix)
		if !listening[dir+"/"+name+".ctl"] && (h.daemon == nil || !known[name]) {
			specs = append(specs, name)
		}
	}
	var found []Finding
	if dead != nil {
		mend := "rm " + quoteAll(dead)
		if h.daemon == nil { // what it has engines for is not known
			mend = "systemctl start virt-cow"
		}
		found = append(found, Finding{
			Result: Warning, Seen: "nobody listens on " + some(dead), Mend: mend,
			Why: "left by a process that was killed; a guest that has one waits in vain",
		})
	}
	for _, name := range strangers {
		found = append(found, h.stranger(ctx, name))
	}
	if specs != nil {
		found = append(found, Finding{
			Result: Problem, Seen: "engines that should run do not: " + some(specs), Why: "their guests wait for their disks",
			Mend: "systemctl restart virt-cow; virt-cow status",
		})
	}
	if found != nil {
		return found
	}
	return well("nothing is left in %s", dir)
}

// stranger tells of an engine that the daemon does not know.
func (h *Host) stranger(ctx context.Context, name string) Finding {
	f := Finding{
		Result: Warning, Seen: "an engine serves " + name + ", but the daemon does not know it",
		Why: "it was started by hand, or is left of a guest that is gone; its store is in use as long as it runs",
	}
	s, err := api.NewEngine(h.path(h.Config.Config.RunDir + "/" + name + ".ctl")).Status(ctx)
	if err != nil {
		f.Seen += ", and it does not answer: " + err.Error()
		f.Mend = "ps -C virt-cow -o pid,args # see what it is"
		return f
	}
	f.Seen += fmt.Sprintf(" (pid %d, store %s, %d connections)", s.PID, s.Store, s.Connections)
	f.Mend = fmt.Sprintf("kill -TERM %d # if nobody needs it: it flushes and closes its store", s.PID)
	return f
}

// listening are the paths of sockets that somebody listens on.
func (h *Host) listening() (map[string]bool, error) {
	text, err := h.read("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for line := range strings.Lines(text) {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(line)
		const accepting = "00010000"
		if len(f) >= 8 && f[3] == accepting {
			found[strings.Join(f[7:], " ")] = true
		}
	}
	return found, nil
}

// caches looks for exception caches that no engine uses: of volumes whose engine was killed and not started again.
func caches(ctx context.Context, h *Host) []Finding {
	dir := h.Config.Config.RunDir
	files := h.glob(api.CachePath(dir, "*"))
	if len(files) == 0 {
		return well("none is left over")
	}
	used := map[string]bool{}
	listening, err := h.listening()
	if err != nil {
		return unread(err)
	}
	for _, ctl := range h.glob(dir + "/*.ctl") {
		if !listening[ctl] {
			continue
		}
		s, err := api.NewEngine(h.path(ctl)).Status(ctx)
		if err != nil {
			return skipped("%s does not answer, so whose they are is not known", ctl)
		}
		used[s.UUID] = true
	}
	names := map[string]string{}
	if l, err := h.api().Volumes(ctx); err == nil {
		for _, v := range l.Volumes {
			names[v.UUID] = v.Name
		}
	}
	var found []Finding
	for _, f := range files {
		id := strings.TrimSuffix(filepath.Base(f), ".cache")
		if used[id] {
			continue
		}
		name := "a volume that the catalogue does not know"
		start := "virt-cow volume scan"
		if n := names[id]; n != "" {
			name, start = "volume "+n, "virt-cow hydrate start "+n
		}
		found = append(found, Finding{
			Result: Warning, Seen: f + " is of " + name + ", which nobody serves",
			Why:  "its engine was killed: writes that were acknowledged but not flushed are known only from this file. Do not remove it",
			Mend: start + " # before a reboot: the engine goes on where the killed one was",
		})
	}
	if found != nil {
		return found
	}
	return well("all %d are in use", len(files))
}
