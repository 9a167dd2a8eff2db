package main

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// A store that two hosts have open tells of both, and is no less in order.
func TestGrantedStore(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run("store", "create", "--size", "1M", "--name", "v", b.path("v.vcow")).exits(0)
	dev, err := blockdev.OpenFile(t.Context(), b.path("v.vcow"), blockdev.FileOptions{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	st, err := store.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	me := cowfmt.Owner{Host: uuid.New(), Boot: uuid.New(), Instance: uuid.New(), HostName: "hv1", Since: time.Now().Unix()}
	if _, err := st.Acquire(t.Context(), me, store.Claiming{}); err != nil {
		t.Fatal(err)
	}
	to := uuid.New()
	my, their, err := st.ChooseSlots(me.Host, to)
	if err != nil {
		t.Fatal(err)
	}
	g := cowfmt.Grant{ID: uuid.New(), Host: to, Boot: uuid.New(), HostName: "hv2", Slot: uint16(their), Since: time.Now().Unix()}
	if err := st.Grant(g); err != nil {
		t.Fatal(err)
	}
	slot := cowfmt.MigrationSlot{Host: me.Host, HostName: "hv1", State: cowfmt.SlotOpen, Epoch: 1, Grant: g.ID, Time: time.Now().UnixMilli()}
	if err := st.WriteSlot(my, &slot); err != nil {
		t.Fatal(err)
	}
	b.run("store", "info", b.path("v.vcow")).exits(0).says("to hv2 since", g.Boot.String(), "hv1 is open since")
	b.run("store", "dump", b.path("v.vcow")).exits(0).says(g.ID.String(), "boot "+g.Boot.String(), "migration slot", "open, host "+me.Host.String())
	b.run("store", "verify", b.path("v.vcow")).exits(0)
	var i storeInfo
	b.run("--json", "store", "info", b.path("v.vcow")).exits(0).json(&i)
	if len(i.GrantedTo) != 1 || i.GrantedTo[0].Boot != g.Boot.String() || len(i.Slots) != 1 || i.Slots[0].State != "open" || i.Slots[0].Slot != my {
		t.Errorf("%+v", i)
	}
}
