package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/top"
)

var plainHost = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// plainName is what a host is called in a line that may be typed into a shell: what is no plain name came from another
// host, and its UUID stands for it.
func plainName(name, uuid string) string {
	switch {
	case plainHost.MatchString(name):
		return name
	case plainHost.MatchString(uuid):
		return uuid
	}
	return "the other host"
}

// peerOf is the other host of a volume's hand-over or migration, "" if there is neither.
func peerOf(v *api.VolumeStatus) string {
	switch {
	case v.Engine != nil && v.Engine.Handover != nil:
		return plainName(v.Engine.Handover.Peer, v.Engine.Handover.PeerHost)
	case v.Migration != nil:
		return plainName(v.Migration.Peer, "")
	}
	return ""
}

// waits is what a volume's hand-over can't go on without, and what to do, "" if it waits for nobody.
func waits(v *api.VolumeStatus) string {
	why := ""
	if v.Engine != nil && v.Engine.Handover != nil {
		why = v.Engine.Handover.Waits
	}
	if m := v.Migration; m != nil && m.Waits != "" && m.Waits != why {
		if why != "" {
			why += "; "
		}
		why += m.Waits
	}
	if why == "" || strings.Contains(why, "virt-cow ") { // it says itself what to do
		return why
	}
	if host := peerOf(v); plainHost.MatchString(host) {
		why += fmt.Sprintf("; look at `virt-cow status` on %s, or, if %s is dead and will never write again: `virt-cow host fenced %s`", host, host, host)
	}
	return why
}

// ago is how long ago a time of Unix milliseconds was, which may be another host's.
func ago(millis int64, now time.Time) string {
	return top.Duration(max(0, now.Sub(time.UnixMilli(millis)).Seconds()))
}

// since is a time of Unix seconds, and how long ago it was.
func since(seconds int64, now time.Time) string {
	return fmt.Sprintf("since %s (%s)", time.Unix(seconds, 0).Format(time.RFC3339), ago(seconds*1000, now))
}

// cacheOf tells the mode of the exception cache.
func cacheOf(e *api.EngineStatus, now time.Time) string {
	if e.CacheSince == 0 {
		return e.Cache
	}
	return e.Cache + " " + since(e.CacheSince, now)
}

func namedOwner(o *api.Owner, now time.Time) string {
	text := fmt.Sprintf("%s (%s), engine %s", plainName(o.HostName, "?"), o.Host, o.Instance)
	if o.Address != "" {
		text += ", answers at " + o.Address
	}
	return text + ", " + since(o.Since, now)
}

func grantOf(g *api.Grant, now time.Time) string {
	text := fmt.Sprintf("%s to %s (%s)", g.ID, plainName(g.HostName, "?"), g.Host)
	if g.Address != "" {
		text += ", answers at " + g.Address
	}
	return text + ", " + since(g.Since, now)
}

func migrationOf(m *api.MigrationStatus, now time.Time) string {
	way := "in from "
	if m.Direction == "out" {
		way = "out to "
	}
	return fmt.Sprintf("%s%s for %s, id %s", way, plainName(m.Peer, ""), ago(m.Since*1000, now), m.ID)
}

func handoverOf(h *api.Handover, now time.Time) string {
	peer := plainName(h.Peer, h.PeerHost)
	way := "from "
	if h.Role == api.RoleGiver {
		way = "to "
	}
	text := fmt.Sprintf("%s%s: %s for %s", way, peer, h.State, ago(h.Since, now))
	if h.PeerState != "" {
		text += ", " + peer + " says " + h.PeerState
	}
	if h.Guest != "" {
		text += ", guest here: " + h.Guest
	}
	if h.Held > 0 {
		text += ", " + count(h.Held, "request") + " held"
	}
	if h.Wrote {
		text += ", the receiver has written"
	}
	return text
}

// fact is a line of what is shown of a volume.
type fact struct{ name, value string }

// sharing is what there is to tell of a volume's cache, and of other hosts that have it.
func sharing(v *api.VolumeStatus, now time.Time) []fact {
	var facts []fact
	if e := v.Engine; e != nil {
		facts = append(facts, fact{"cache", cacheOf(e, now)})
		if e.Owner != nil {
			facts = append(facts, fact{"owner", namedOwner(e.Owner, now)})
		}
		facts = append(facts, fact{"epoch", fmt.Sprint(e.Epoch)})
		for i := range e.Grants {
			facts = append(facts, fact{"grant", grantOf(&e.Grants[i], now)})
		}
		if e.Handover != nil {
			facts = append(facts, fact{"hand-over", handoverOf(e.Handover, now)})
		}
	}
	if v.Migration != nil {
		facts = append(facts, fact{"migration", migrationOf(v.Migration, now)})
	}
	if why := waits(v); why != "" {
		facts = append(facts, fact{"WAITS", why})
	}
	return facts
}

// underWay is a line for each volume that is, or may be, open on another host too.
func underWay(s *api.DaemonStatus, now time.Time) []string {
	var lines []string
	for i := range s.Volumes {
		v := &s.Volumes[i]
		var parts []string
		if v.Migration != nil {
			parts = append(parts, "migration "+migrationOf(v.Migration, now))
		}
		if e := v.Engine; e != nil && (e.Handover != nil || len(e.Grants) > 0) {
			if e.Handover != nil {
				parts = append(parts, "hand-over "+handoverOf(e.Handover, now))
			}
			about := fmt.Sprintf("cache %s, epoch %d", e.Cache, e.Epoch)
			if e.Owner != nil {
				about += ", owner " + plainName(e.Owner.HostName, e.Owner.Host)
			}
			for j := range e.Grants {
				g := &e.Grants[j]
				about += fmt.Sprintf(", granted to %s for %s", plainName(g.HostName, g.Host), ago(g.Since*1000, now))
			}
			parts = append(parts, about)
		}
		if parts != nil {
			lines = append(lines, v.Volume+": "+strings.Join(parts, "; "))
		}
	}
	return lines
}
