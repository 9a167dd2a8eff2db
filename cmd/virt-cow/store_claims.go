package main

import (
	"errors"
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/store"
)

// StoreClaimsCmd shows which hosts are opening a store, and clears the claim of one that is dead.
type StoreClaimsCmd struct {
	Store string `arg:"" help:"Store: a file or block device." type:"path"`
	Clear string `help:"Clear the claim of this host, by its UUID, or a damaged one by its slot's number. Only for a host that is surely dead: it is your word for that." placeholder:"HOST-UUID"`
}

// claimInfo is what is told of a claim slot.
type claimInfo struct {
	Slot     int        `json:"slot"`
	Host     string     `json:"host,omitempty"`
	HostName string     `json:"hostName,omitempty"`
	Raised   bool       `json:"raised"` // the host is opening the store, or died while it did
	Since    *time.Time `json:"since,omitempty"`
	Error    string     `json:"error,omitempty"` // the slot is damaged
}

// Run lists the slots that are in use.
func (c *StoreClaimsCmd) Run(env *Env) error {
	if c.Clear != "" {
		return c.clear(env)
	}
	dev, st, err := readStore(env.Context, c.Store)
	if err != nil {
		return err
	}
	defer dev.Close()
	claims, err := st.Claims()
	if err != nil {
		return err
	}
	out := []claimInfo{}
	for _, o := range claims {
		i := claimInfo{Slot: o.Slot}
		if o.Err != nil {
			i.Raised, i.Error = true, o.Err.Error()
		} else {
			since := time.UnixMilli(o.Time).UTC()
			i.Host, i.HostName, i.Raised, i.Since = o.Host.String(), o.HostName, o.Nonce != 0, &since
		}
		out = append(out, i)
	}
	if env.JSON {
		return printJSON(env, out)
	}
	if len(out) == 0 {
		fmt.Fprintf(env.Stdout, "%s: no claims\n", c.Store)
		return nil
	}
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SLOT\tHOST\tNAME\tSTATE\tSINCE")
	for _, i := range out {
		state, since := "lowered", "-"
		switch {
		case i.Error != "":
			state = "damaged"
		case i.Raised:
			state = "raised"
		}
		if i.Since != nil {
			since = i.Since.Local().Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", i.Slot, or(i.Host, "-"), or(i.HostName, "-"), state, since)
	}
	return w.Flush()
}

func (c *StoreClaimsCmd) clear(env *Env) error {
	id, err := uuid.Parse(c.Clear)
	which := func(o store.SlotClaim) bool { return o.Err == nil && o.Host == id }
	if err != nil {
		slot, err := strconv.Atoi(c.Clear)
		if err != nil {
			return exitError{fmt.Errorf("--clear %q: want a host's UUID, or the number of a damaged slot", c.Clear), exitUsage}
		}
		which = func(o store.SlotClaim) bool { return o.Err != nil && o.Slot == slot }
	}
	dev, st, err := openUnserved(env, c.Store)
	if err != nil {
		return err
	}
	defer dev.Close()
	n, err := st.ClearClaims(which)
	if errors.Is(err, store.ErrNoClaim) {
		return fmt.Errorf("%w of %s: `virt-cow store claims %s` lists them", err, c.Clear, c.Store)
	}
	if err != nil {
		return err
	}
	if env.JSON {
		return printJSON(env, struct {
			Store   string `json:"store"`
			Cleared int    `json:"cleared"`
		}{c.Store, n})
	}
	fmt.Fprintf(env.Stdout, "%s: %s cleared\n", c.Store, count(n, "claim"))
	return nil
}
