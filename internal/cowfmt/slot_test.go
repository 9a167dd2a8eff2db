package cowfmt

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

var (
	aClaim     = ClaimSlot{Host: id(0x71), Boot: id(0x72), Instance: id(0x73), HostName: "hv1", Time: 1700000000123, Nonce: 0x0123456789abcdef}
	aMigration = MigrationSlot{Host: id(0x81), HostName: "hv2", State: SlotSealed, Epoch: 7, Grant: id(0x82), Sequence: 5, Time: 1700000000456}
)

func TestSlotRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store, slot := genUUID(t, "store"), rapid.IntRange(0, 63).Draw(t, "slot")
		c := ClaimSlot{genUUID(t, "host"), genUUID(t, "boot"), genUUID(t, "instance"), genText(t, "name", MaxHostName), rapid.Int64().Draw(t, "time"), rapid.Uint64().Draw(t, "nonce")}
		b, err := c.Encode(store, slot)
		if err != nil || len(b) != SlotSize || !allZero(b[512:]) {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		if got, used, err := DecodeClaimSlot(b[:512], store, slot); err != nil || !used || got != c {
			t.Fatalf("%v, %v, %v", got, used, err)
		}
		m := MigrationSlot{genUUID(t, "host"), genText(t, "name", MaxHostName), SlotState(rapid.IntRange(1, 6).Draw(t, "state")), rapid.Uint32().Draw(t, "epoch"),
			genUUID(t, "grant"), rapid.Uint64().Draw(t, "sequence"), rapid.Int64().Draw(t, "time")}
		b, err = m.Encode(store, slot)
		if err != nil || len(b) != SlotSize || !allZero(b[512:]) {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		if got, used, err := DecodeMigrationSlot(b, store, slot); err != nil || !used || got != m {
			t.Fatalf("%v, %v, %v", got, used, err)
		}
	})
}

func encodeSlots(t testing.TB, store uuid.UUID, slot int) (claim, migration []byte) {
	t.Helper()
	claim, err := aClaim.Encode(store, slot)
	if err != nil {
		t.Fatal(err)
	}
	if migration, err = aMigration.Encode(store, slot); err != nil {
		t.Fatal(err)
	}
	return claim, migration
}

func TestSlotGolden(t *testing.T) {
	claim, migration := encodeSlots(t, id(0x11), 7)
	golden(t, "claim", claim[:slotPayload])
	golden(t, "migration", migration[:slotPayload])
}

func TestSlotFree(t *testing.T) {
	b := make([]byte, SlotSize)
	if _, used, err := DecodeClaimSlot(b, id(1), 0); used || err != nil {
		t.Errorf("claim: %v, %v", used, err)
	}
	if _, used, err := DecodeMigrationSlot(b, id(1), 0); used || err != nil {
		t.Errorf("migration: %v, %v", used, err)
	}
}

func TestSlotRefused(t *testing.T) {
	claim, migration := encodeSlots(t, id(0x11), 7)
	refused := func(name string, want error, claim, migration []byte, store uuid.UUID, slot int) {
		t.Helper()
		if _, used, err := DecodeClaimSlot(claim, store, slot); used || !errors.Is(err, want) {
			t.Errorf("claim %s: %v, %v", name, used, err)
		}
		if _, used, err := DecodeMigrationSlot(migration, store, slot); used || !errors.Is(err, want) {
			t.Errorf("migration %s: %v, %v", name, used, err)
		}
	}
	refused("of another slot", ErrCorrupt, claim, migration, id(0x11), 8)
	refused("of another store", ErrCorrupt, claim, migration, id(0x12), 7)
	refused("of the other kind", ErrCorrupt, migration, claim, id(0x11), 7)
	refused("too short", ErrCorrupt, claim[:511], migration[:511], id(0x11), 7)
	for bit := range 8 * slotPayload {
		claim[bit/8] ^= 1 << (bit % 8)
		migration[bit/8] ^= 1 << (bit % 8)
		refused("with a flipped bit", ErrCorrupt, claim, migration, id(0x11), 7)
		claim[bit/8] ^= 1 << (bit % 8)
		migration[bit/8] ^= 1 << (bit % 8)
	}
	for at, want := range map[int]error{slotPayload - 1: ErrInvalid, slotFields + 48 + 16 + 1: ErrCorrupt} { // junk at the end; a name that is too long for the slot
		c := bytes.Clone(claim)
		c[at] = 0xff
		sealSlot(c, claimMagic, id(0x11), 7)
		if _, used, err := DecodeClaimSlot(c, id(0x11), 7); used || !errors.Is(err, want) {
			t.Errorf("byte %d changed: %v, %v", at, used, err)
		}
	}
}

func TestSlotInvalid(t *testing.T) {
	for name, change := range map[string]func(c *ClaimSlot, m *MigrationSlot){
		"host":      func(c *ClaimSlot, m *MigrationSlot) { c.Host, m.Host = uuid.Nil, uuid.Nil },
		"long name": func(c *ClaimSlot, m *MigrationSlot) { c.HostName = fillTo(MaxHostName + 1); m.HostName = c.HostName },
		"bad name":  func(c *ClaimSlot, m *MigrationSlot) { c.HostName, m.HostName = "\x1b[2J", "\x1b[2J" },
		"boot":      func(c *ClaimSlot, m *MigrationSlot) { c.Boot = uuid.Nil; m.State = 0 },
		"instance":  func(c *ClaimSlot, m *MigrationSlot) { c.Instance = uuid.Nil; m.State = 8 },
	} {
		c, m := aClaim, aMigration
		change(&c, &m)
		if _, err := c.Encode(id(1), 0); !errors.Is(err, ErrInvalid) {
			t.Errorf("claim, %s: %v", name, err)
		}
		if _, err := m.Encode(id(1), 0); !errors.Is(err, ErrInvalid) {
			t.Errorf("migration, %s: %v", name, err)
		}
	}
}
