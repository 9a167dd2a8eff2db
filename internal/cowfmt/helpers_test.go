package cowfmt

import (
	"encoding/binary"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write testdata anew")

// golden compares bytes with a hex dump in testdata.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	got := hex.Dump(b)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs: a change of the format needs a version or a feature bit.\ngot:\n%swant:\n%s", path, got, want)
	}
}

// id makes a UUID that is easy to see in a dump.
func id(n byte) (u uuid.UUID) {
	for i := range u {
		u[i] = n
	}
	return u
}

func cloneHeader() *Header {
	layout, err := NewLayout(RoleClone, 10<<30, 64<<10)
	if err != nil {
		panic(err)
	}
	h := &Header{
		UUID: id(0x11), Name: "web1.root", Role: RoleClone, Size: 10 << 30, ChunkSize: 64 << 10, Layout: layout,
		Created: 1700000000, Epoch: 3, Sequence: 9, Generation: 2, Opens: 5, Cache: CacheOff, ActiveTable: 1, TableEpoch: 2,
		Master:         &Locator{Kind: LocatorNBD, Address: "nbd+unix:///debian-12?socket=/run/masters.sock"},
		MasterIdentity: &Identity{Kind: IdentitySamples, Size: 2 << 30, Digest: [32]byte{1, 2, 3}},
		Owner:          &Owner{Host: id(0x21), Boot: id(0x22), Instance: id(0x23), HostName: "hv1", Address: "hv1.example.org:7171", Since: 1700000001},
		Grants:         []Grant{{ID: id(0x31), Host: id(0x32), Boot: id(0x33), HostName: "hv2", Address: "192.0.2.2:7171", Slot: 7, Since: 1700000002}},
		Stack: []StackEntry{
			{Kind: StackSnapshot, State: StackActive, UUID: id(0x41), Generation: 4, Cursor: 1 << 30, CutID: id(0x42), Locator: Locator{LocatorStore, "/dev/disk/by-id/wwn-0x5000c50015ea71ac"}},
			{Kind: StackTracker, State: StackBroken, UUID: id(0x43), CutID: id(0x44), Locator: Locator{LocatorStore, "/var/lib/trackers/web1"}},
		},
		Progress: Progress{Kind: ProgressResize, Data: []byte{0xaa, 0xbb, 0xcc}},
		Extra:    []Record{{Type: 0x1234, Flags: 6, Data: []byte("kept")}},
		Features: Features{Compatible: 1 << 40},
	}
	h.SetGroupReady(0)
	return h
}

func snapshotHeader() *Header {
	layout, err := NewLayout(RoleSnapshot, 1<<40, 4<<10)
	if err != nil {
		panic(err)
	}
	h := &Header{
		UUID: id(0x51), Name: "db", Role: RoleSnapshot, Size: 1 << 40, ChunkSize: 4 << 10, Layout: layout, Created: 1700000003,
		Epoch: 1, Sequence: 1, Generation: 1, Cache: CacheOn, TableEpoch: 1, Cut: id(0x52),
		Origin:         &Locator{Kind: LocatorStore, Address: "/dev/mapper/db"},
		OriginIdentity: &Identity{Kind: IdentityStore, Size: 1 << 40, UUID: id(0x53), Opens: 3},
	}
	h.readyAll()
	return h
}

// frozenHeader is of a snapshot of a clone that has a master.
func frozenHeader() *Header {
	h := snapshotHeader()
	h.Layout = h.Layout.WithFrozen()
	h.Master = &Locator{Kind: LocatorRaw, Address: "/dev/mapper/debian"}
	h.MasterIdentity = &Identity{Kind: IdentityWWID, Size: 1 << 30, WWID: "naa.5000c50015ea71ac"}
	return h
}

// pendingHeader is of a volume with a snapshot that is being made.
func pendingHeader() *Header {
	h := stateHeader()
	h.Stack = []StackEntry{{Kind: StackSnapshot, State: StackPending, OnError: OnErrorBreakGuestWrite, Timeout: 2500, UUID: id(0x71), Generation: 1,
		CutID: id(0x72), Locator: Locator{LocatorStore, "/dev/mapper/db-snap"}}}
	return h
}

func (h *Header) readyAll() {
	for g := range h.Groups() {
		h.SetGroupReady(g)
	}
}

func stateHeader() *Header {
	return &Header{
		UUID: id(0x61), Name: "db", Role: RoleState, Size: 512, ChunkSize: 1 << 20, Created: 1700000004, Epoch: 1, Sequence: 2, Cache: CacheOn,
		Origin:         &Locator{Kind: LocatorStore, Address: "/dev/mapper/db"},
		OriginIdentity: &Identity{Kind: IdentityStore, Size: 512, UUID: id(0x62), Opens: 12},
	}
}

func mustEncode(t testing.TB, h *Header) []byte {
	t.Helper()
	b, err := h.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// used cuts a header copy to the bytes its check sum covers.
func used(b []byte) []byte {
	return b[:binary.LittleEndian.Uint32(b[atLength:])]
}

// seal gives a header copy that was tampered with a right check sum.
func seal(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[atCRC:], crcAround(0, used(b), atCRC))
	return b
}

// fillTo returns a text of exactly n bytes.
func fillTo(n int) string { return strings.Repeat("x", n) }

func genUUID(t *rapid.T, label string) (u uuid.UUID) {
	copy(u[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label))
	u[0] |= 1 // not zero
	return u
}

func genText(t *rapid.T, label string, limit int) string {
	return rapid.StringMatching(`[ -~äß€𝄞]*`).Filter(func(s string) bool { return len(s) <= limit }).Draw(t, label)
}

func genLocator(t *rapid.T, label string) Locator {
	return Locator{LocatorKind(rapid.IntRange(1, 4).Draw(t, label)), "/" + genText(t, label, MaxAddress-1)}
}

func genIdentity(t *rapid.T, label string) *Identity {
	i := &Identity{Kind: IdentityKind(rapid.IntRange(1, 3).Draw(t, label)), Size: rapid.Int64Range(1, MaxSize).Draw(t, label)}
	switch i.Kind {
	case IdentityStore:
		i.UUID, i.Opens = genUUID(t, label), rapid.Uint64().Draw(t, label)
	case IdentityWWID:
		i.WWID = "w" + genText(t, label, MaxWWID-1)
	case IdentitySamples:
		copy(i.Digest[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, label))
	}
	return i
}

// genHeader draws any valid header.
func genHeader(t *rapid.T) *Header {
	h := &Header{
		UUID: genUUID(t, "uuid"), Name: rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._-]{0,63}`).Draw(t, "name"),
		Role: Role(rapid.IntRange(1, 3).Draw(t, "role")), Size: 512 * rapid.Int64Range(1, MaxSize/512).Draw(t, "size"),
		ChunkSize: MinChunk << rapid.IntRange(0, 8).Draw(t, "chunk"), Created: rapid.Int64().Draw(t, "created"),
		Epoch: rapid.Uint32().Draw(t, "epoch"), Sequence: rapid.Uint64().Draw(t, "sequence"), Generation: rapid.Uint64().Draw(t, "generation"),
		Opens: rapid.Uint64().Draw(t, "opens"), Cache: CacheMode(rapid.IntRange(1, 2).Draw(t, "cache")),
	}
	h.Features.Compatible = rapid.Uint64().Draw(t, "compatible")
	h.TableEpoch = rapid.Uint32Range(0, h.Epoch).Draw(t, "table epoch")
	var err error
	if h.Layout, err = NewLayout(h.Role, h.Size, h.ChunkSize); err != nil {
		t.Fatal(err)
	}
	if h.Role != RoleState {
		h.ActiveTable = rapid.IntRange(0, 1).Draw(t, "active")
		for _, g := range rapid.SliceOfN(rapid.IntRange(0, h.Groups()-1), 0, 5).Draw(t, "groups") {
			h.SetGroupReady(g)
		}
	}
	if h.Role == RoleSnapshot {
		genSnapshot(t, h)
		return h
	}
	h.CutLoose = h.Role == RoleClone && rapid.Bool().Draw(t, "cut loose")
	if h.Role == RoleClone && (!h.CutLoose || rapid.Bool().Draw(t, "master")) {
		h.Master, h.MasterIdentity = new(genLocator(t, "master")), genIdentity(t, "master identity")
	}
	if h.Role != RoleClone {
		h.Origin = new(genLocator(t, "origin"))
		if rapid.Bool().Draw(t, "origin known") {
			h.OriginIdentity = genIdentity(t, "origin identity")
		}
	}
	if rapid.Bool().Draw(t, "owned") {
		h.Owner = &Owner{genUUID(t, "host"), genUUID(t, "boot"), genUUID(t, "instance"), genText(t, "host name", MaxHostName),
			genText(t, "address", MaxHostAddress), rapid.Int64().Draw(t, "since")}
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "grants") {
		g := Grant{genUUID(t, "grant"), genUUID(t, "grant host"), genUUID(t, "grant boot"), genText(t, "grant name", MaxHostName), genText(t, "grant address", MaxHostAddress),
			uint16(i), rapid.Int64().Draw(t, "grant since")}
		g.ID[15], g.Host[15] = byte(i), byte(i)
		h.Grants = append(h.Grants, g)
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "stack") {
		e := StackEntry{StackKind(rapid.IntRange(1, 2).Draw(t, "kind")), uint8(rapid.IntRange(1, 3).Draw(t, "state")),
			uint8(rapid.IntRange(0, 1).Draw(t, "on error")), rapid.Uint32().Draw(t, "timeout"), genUUID(t, "entry"),
			rapid.Uint64().Draw(t, "entry generation"), rapid.Int64Range(0, h.Size).Draw(t, "cursor"), genUUID(t, "cut"), genLocator(t, "entry locator")}
		e.UUID[15] = byte(i)
		h.Stack = append(h.Stack, e)
	}
	genRest(t, h)
	return h
}

// genSnapshot draws what only a snapshot store has.
func genSnapshot(t *rapid.T, h *Header) {
	h.readyAll()
	h.Cut = genUUID(t, "snapshot's cut")
	h.Origin = &Locator{LocatorStore, "/" + genText(t, "origin", MaxAddress-1)}
	h.OriginIdentity = &Identity{Kind: IdentityStore, Size: h.Size, UUID: genUUID(t, "volume"), Opens: rapid.Uint64().Draw(t, "opens then")}
	if rapid.Bool().Draw(t, "frozen") {
		h.Layout = h.Layout.WithFrozen()
		if rapid.Bool().Draw(t, "master") {
			h.Master, h.MasterIdentity = new(genLocator(t, "master")), genIdentity(t, "master identity")
		}
	}
	genRest(t, h)
}

func genRest(t *rapid.T, h *Header) {
	if rapid.Bool().Draw(t, "progress") {
		h.Progress.Kind = rapid.Uint16Min(1).Draw(t, "progress kind")
		h.Progress.Data = append(h.Progress.Data, rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "progress data")...)
	}
	for range rapid.IntRange(0, 3).Draw(t, "extras") {
		h.Extra = append(h.Extra, Record{rapid.Uint16Min(lastKnownRecord+1).Draw(t, "type"), rapid.Uint16().Draw(t, "flags") &^ RecordCritical,
			append([]byte{}, rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "data")...)})
	}
}
