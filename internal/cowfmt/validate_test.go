package cowfmt

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"
)

func TestValidName(t *testing.T) {
	for _, name := range []string{"a", "0", "Web-1.root_x", fillTo(MaxName)} {
		if err := ValidName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "a@b", "ä", "a\x00", fillTo(MaxName + 1)} {
		if err := ValidName(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// Each change alone must make the header invalid, for Validate and for both directions of the codec.
func TestValidate(t *testing.T) {
	long := func(limit int) string { return fillTo(limit + 1) }
	clones := map[string]func(h *Header){
		"name":                    func(h *Header) { h.Name = "a/b" },
		"uuid":                    func(h *Header) { h.UUID = uuid.Nil },
		"role 0":                  func(h *Header) { h.Role = 0 },
		"role 4":                  func(h *Header) { h.Role = 4 },
		"size 0":                  func(h *Header) { h.Size = 0 },
		"size negative":           func(h *Header) { h.Size = -512 },
		"size odd":                func(h *Header) { h.Size++ },
		"size too large":          func(h *Header) { h.Size = MaxSize + 512 },
		"size beyond the table":   func(h *Header) { h.Size = MaxSize },
		"chunk 0":                 func(h *Header) { h.ChunkSize = 0 },
		"chunk negative":          func(h *Header) { h.ChunkSize = -4096 },
		"chunk too small":         func(h *Header) { h.ChunkSize = MinChunk / 2 },
		"chunk too large":         func(h *Header) { h.ChunkSize = MaxChunk * 2 },
		"chunk no power":          func(h *Header) { h.ChunkSize = 12 << 10 },
		"table in the metadata":   func(h *Header) { h.Layout.Table[0] = 0 },
		"table negative":          func(h *Header) { h.Layout.Table[0] = -MetadataSize },
		"table far away":          func(h *Header) { h.Layout.Table[1] = 1 << 62; h.Layout.Data = 1<<62 + 1<<20 },
		"table unaligned":         func(h *Header) { h.Layout.Table[1] += 512; h.Layout.Data += 1 << 20 },
		"tables overlap":          func(h *Header) { h.Layout.Table[1] = h.Layout.Table[0] },
		"data in the table":       func(h *Header) { h.Layout.Data = h.Layout.Table[1] },
		"data unaligned":          func(h *Header) { h.Layout.Data += 4096 },
		"data far away":           func(h *Header) { h.Layout.Data = 1 << 62 },
		"capacity 0":              func(h *Header) { h.Layout.TableSectors = 0 },
		"capacity negative":       func(h *Header) { h.Layout.TableSectors = -2048 },
		"capacity huge":           func(h *Header) { h.Layout.TableSectors = 1 << 62 },
		"capacity not in groups":  func(h *Header) { h.Layout.TableSectors-- },
		"capacity over the data":  func(h *Header) { h.Layout.TableSectors *= 2 },
		"cache 0":                 func(h *Header) { h.Cache = 0 },
		"cache 3":                 func(h *Header) { h.Cache = 3 },
		"active table":            func(h *Header) { h.ActiveTable = 2 },
		"active table negative":   func(h *Header) { h.ActiveTable = -1 },
		"table epoch":             func(h *Header) { h.TableEpoch = h.Epoch + 1 },
		"group not in use":        func(h *Header) { h.SetGroupReady(h.Groups()) },
		"groups too long":         func(h *Header) { h.TableGroups = make([]byte, 2) },
		"no master identity":      func(h *Header) { h.MasterIdentity = nil },
		"identity without master": func(h *Header) { h.CutLoose = true; h.Master = nil },
		"origin":                  func(h *Header) { h.Origin = &Locator{LocatorRaw, "/o"} },
		"origin identity":         func(h *Header) { h.OriginIdentity = &Identity{Kind: IdentityWWID, Size: 1, WWID: "w"} },
		"locator kind 0":          func(h *Header) { h.Master.Kind = 0 },
		"locator kind 5":          func(h *Header) { h.Master.Kind = 5 },
		"address empty":           func(h *Header) { h.Master.Address = "" },
		"address too long":        func(h *Header) { h.Master.Address = long(MaxAddress) },
		"address not UTF-8":       func(h *Header) { h.Master.Address = "/\xff" },
		"address with newline":    func(h *Header) { h.Master.Address = "/a\nb" },
		"identity kind 0":         func(h *Header) { h.MasterIdentity.Kind = 0 },
		"identity size":           func(h *Header) { h.MasterIdentity.Size = 0 },
		"identity size large":     func(h *Header) { h.MasterIdentity.Size = MaxSize + 1 },
		"identity no uuid":        func(h *Header) { *h.MasterIdentity = Identity{Kind: IdentityStore, Size: 1} },
		"identity no wwid":        func(h *Header) { *h.MasterIdentity = Identity{Kind: IdentityWWID, Size: 1} },
		"identity long wwid":      func(h *Header) { *h.MasterIdentity = Identity{Kind: IdentityWWID, Size: 1, WWID: long(MaxWWID)} },
		"identity of two kinds":   func(h *Header) { h.MasterIdentity.WWID = "w" },
		"owner host":              func(h *Header) { h.Owner.Host = uuid.Nil },
		"owner boot":              func(h *Header) { h.Owner.Boot = uuid.Nil },
		"owner instance":          func(h *Header) { h.Owner.Instance = uuid.Nil },
		"owner name":              func(h *Header) { h.Owner.HostName = long(MaxHostName) },
		"owner address":           func(h *Header) { h.Owner.Address = long(MaxHostAddress) },
		"grant id":                func(h *Header) { h.Grants[0].ID = uuid.Nil },
		"grant host":              func(h *Header) { h.Grants[0].Host = uuid.Nil },
		"grant boot":              func(h *Header) { h.Grants[0].Boot = uuid.Nil },
		"grant name":              func(h *Header) { h.Grants[0].HostName = long(MaxHostName) },
		"grant address":           func(h *Header) { h.Grants[0].Address = long(MaxHostAddress) },
		"grant slot":              func(h *Header) { h.Grants[0].Slot = MigrationSlots },
		"grants share id": func(h *Header) {
			h.Grants = append(h.Grants, Grant{ID: h.Grants[0].ID, Host: id(1), Boot: id(1), Slot: 1})
		},
		"grants share host": func(h *Header) {
			h.Grants = append(h.Grants, Grant{ID: id(1), Host: h.Grants[0].Host, Boot: id(1), Slot: 1})
		},
		"grants share slot":       func(h *Header) { h.Grants = append(h.Grants, Grant{ID: id(1), Host: id(1), Boot: id(1), Slot: 7}) },
		"stack kind 0":            func(h *Header) { h.Stack[0].Kind = 0 },
		"stack kind 3":            func(h *Header) { h.Stack[0].Kind = 3 },
		"stack state":             func(h *Header) { h.Stack[0].State = 0 },
		"stack state 4":           func(h *Header) { h.Stack[0].State = 4 },
		"stack policy":            func(h *Header) { h.Stack[0].OnError = 2 },
		"stack uuid":              func(h *Header) { h.Stack[0].UUID = uuid.Nil },
		"stack uuid twice":        func(h *Header) { h.Stack[0].UUID = h.Stack[1].UUID },
		"stack cursor negative":   func(h *Header) { h.Stack[0].Cursor = -1 },
		"stack cursor past end":   func(h *Header) { h.Stack[0].Cursor = h.Size + 1 },
		"stack locator":           func(h *Header) { h.Stack[0].Locator = Locator{} },
		"progress without kind":   func(h *Header) { h.Progress.Kind = 0 },
		"progress too long":       func(h *Header) { h.Progress.Data = make([]byte, MaxProgress+1) },
		"too many grants":         func(h *Header) { h.Grants = make([]Grant, MaxGrants+1) },
		"too many stack entries":  func(h *Header) { h.Stack = make([]StackEntry, MaxStack+1) },
		"extra of a known type":   func(h *Header) { h.Extra[0].Type = lastKnownRecord },
		"extra of type 0":         func(h *Header) { h.Extra[0].Type = 0 },
		"extra that is critical":  func(h *Header) { h.Extra[0].Flags |= RecordCritical },
		"snapshot without origin": func(h *Header) { h.Role = RoleSnapshot; h.Stack = nil },
		"snapshot with a stack":   func(h *Header) { s := h.Stack; *h = *snapshotHeader(); h.Stack = s },
		"snapshot with an owner":  func(h *Header) { o := h.Owner; *h = *snapshotHeader(); h.Owner = o },
		"snapshot with a grant":   func(h *Header) { g := h.Grants; *h = *snapshotHeader(); h.Grants = g },
		"snapshot without a cut":  func(h *Header) { *h = *snapshotHeader(); h.Cut = uuid.Nil },
		"snapshot of a raw disk":  func(h *Header) { *h = *snapshotHeader(); h.Origin.Kind = LocatorRaw },
		"snapshot of no volume":   func(h *Header) { *h = *snapshotHeader(); h.OriginIdentity = nil },
		"snapshot of a WWID":      func(h *Header) { m := frozenHeader().MasterIdentity; *h = *snapshotHeader(); h.OriginIdentity = m },
		"snapshot half ready":     func(h *Header) { *h = *snapshotHeader(); h.TableGroups[1] &^= 2 },
		"master but not frozen":   func(h *Header) { *h = *frozenHeader(); h.Layout.Frozen = 0 },
		"frozen unaligned":        func(h *Header) { *h = *frozenHeader(); h.Layout.Frozen += 512; h.Layout.Data += 1 << 20 },
		"frozen over a table":     func(h *Header) { *h = *frozenHeader(); h.Layout.Frozen = h.Layout.Table[1] },
		"frozen over the data":    func(h *Header) { *h = *frozenHeader(); h.Layout.Frozen += 1 << 20 },
		"frozen far away":         func(h *Header) { *h = *frozenHeader(); h.Layout.Frozen = 1 << 62; h.Layout.Data = 1 << 40 },
		"frozen negative":         func(h *Header) { *h = *frozenHeader(); h.Layout.Frozen = -1 << 20 },
		"clone with a cut":        func(h *Header) { h.Cut = id(1) },
		"clone that is frozen":    func(h *Header) { h.Layout = h.Layout.WithFrozen() },
		"snapshot that is loose":  func(h *Header) { *h = *snapshotHeader(); h.CutLoose = true },
		"state with layout":       func(h *Header) { l := h.Layout; *h = *stateHeader(); h.Layout = l },
		"state with master": func(h *Header) {
			m, i := h.Master, h.MasterIdentity
			*h = *stateHeader()
			h.Master, h.MasterIdentity = m, i
		},
		"state with table 1":       func(h *Header) { *h = *stateHeader(); h.ActiveTable = 1 },
		"state with groups":        func(h *Header) { *h = *stateHeader(); h.TableGroups = []byte{0} },
		"state that is loose":      func(h *Header) { *h = *stateHeader(); h.CutLoose = true },
		"state without origin":     func(h *Header) { *h = *stateHeader(); h.Origin, h.OriginIdentity = nil, nil },
		"origin identity no place": func(h *Header) { *h = *stateHeader(); h.OriginIdentity.UUID = uuid.Nil },
	}
	// What can't be expressed in bytes at all, or means something else there.
	inMemoryOnly := map[string]bool{"active table negative": true, "extra of a known type": true, "extra of type 0": true,
		"extra that is critical": true, "identity of two kinds": true, "progress without kind": true, "identity kind 0": true, "clone with a cut": true, "clone that is frozen": true}
	if err := cloneHeader().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range clones {
		h := cloneHeader()
		change(h)
		err := h.Validate()
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Validate: %v", name, err)
			continue
		}
		if !strings.HasPrefix(err.Error(), "header of ") {
			t.Errorf("%s: the message doesn't name the store: %v", name, err)
		}
		if _, err := h.Encode(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Encode: %v", name, err)
		}
		if inMemoryOnly[name] {
			continue
		}
		b := h.appendRecords(h.fixedPart())
		b = append(b, make([]byte, max(0, HeaderSize-len(b)))...)[:HeaderSize]
		length := len(h.appendRecords(h.fixedPart()))
		b[atLength], b[atLength+1], b[atLength+2] = byte(length), byte(length>>8), byte(length>>16)
		if _, err := DecodeHeader(seal(b)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: DecodeHeader: %v", name, err)
		}
	}
}

func TestValidVariants(t *testing.T) {
	for name, change := range map[string]func(h *Header){
		"begins empty":              func(h *Header) { h.Master, h.MasterIdentity = nil, nil },
		"cut loose, no master":      func(h *Header) { h.CutLoose = true; h.Master, h.MasterIdentity = nil, nil },
		"cut loose, master kept":    func(h *Header) { h.CutLoose = true },
		"snapshot of a disk":        func(h *Header) { *h = *snapshotHeader() },
		"snapshot of a clone":       func(h *Header) { *h = *frozenHeader() },
		"of one that began empty":   func(h *Header) { *h = *frozenHeader(); h.Master, h.MasterIdentity = nil, nil },
		"pending snapshot":          func(h *Header) { *h = *pendingHeader() },
		"not owned":                 func(h *Header) { h.Owner = nil },
		"cursor at the end":         func(h *Header) { h.Stack[0].Cursor = h.Size },
		"nothing ready":             func(h *Header) { h.TableGroups = nil },
		"grown to its capacity":     func(h *Header) { h.Size = 2 * h.Size },
		"data further behind":       func(h *Header) { h.Layout.Data += 5 << 20 },
		"state store with a broken": func(h *Header) { s := h.Stack; *h = *stateHeader(); h.Stack = s[1:] },
	} {
		h := cloneHeader()
		change(h)
		if err := h.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
