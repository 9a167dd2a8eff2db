package cowfmt

import (
	"fmt"
	"strings"
	"testing"
)

func TestStrings(t *testing.T) {
	h := cloneHeader()
	for _, c := range []struct {
		v    any
		want string
	}{
		{RoleSnapshot, "snapshot"}, {Role(9), "role(9)"}, {Role(0), "role(0)"}, {CacheOff, "off"}, {LocatorArchive, "archive"}, {IdentityWWID, "wwid"},
		{StackTracker, "tracker"}, {SlotIdle, "idle"}, {SlotActive, "active"}, {SlotKept, "kept"}, {SlotState(8), "state(8)"},
		{Progress{Kind: ProgressRemove}, "remove"}, {Progress{}, "none"}, {Progress{Kind: 8}, "progress(8)"},
		{*h.Master, "nbd nbd+unix:///debian-12?socket=/run/masters.sock"},
		{*h.MasterIdentity, "samples 0102030000"},
		{*frozenHeader().MasterIdentity, "wwid naa.5000c50015ea71ac, 1073741824 bytes"},
		{*stateHeader().OriginIdentity, "store 62626262-6262-6262-6262-626262626262, opened 12 times, 512 bytes"},
		{*h.Owner, "host hv1 (21212121-2121-2121-2121-212121212121) at hv1.example.org:7171, boot 2222"},
		{Owner{Host: id(1)}, "host 01010101-0101-0101-0101-010101010101, boot"},
		{h.Grants[0], "to host hv2 (32323232-3232-3232-3232-323232323232) at 192.0.2.2:7171, boot 33333333-3333-3333-3333-333333333333, slot 7"},
		{h.Stack[0], "snapshot 41414141-4141-4141-4141-414141414141 active, generation 4, cursor 1073741824"},
		{h.Stack[1], "tracker 43434343-4343-4343-4343-434343434343 broken"},
		{h, "clone web1.root (11111111-1111-1111-1111-111111111111), 10737418240 bytes in chunks of 65536, epoch 3, sequence 9"},
		{h.Layout, "tables at 1048576 and 2097152, 2048 sectors each, data at 3145728"},
		{frozenHeader().Layout, "sectors each, frozen table at "},
		{StackEntry{State: StackPending}, "pending"},
		{OnErrorName(OnErrorBreakGuestWrite), "break-guest-write"},
		{Features{1, 2, 4}, "compatible 0x1, read-only-compatible 0x2, incompatible 0x4"},
		{aClaim, "nonce 0x123456789abcdef"}, {aMigration, "sealed, host hv2"},
	} {
		if got := fmt.Sprint(c.v); !strings.Contains(got, c.want) {
			t.Errorf("%T: got %q, want %q in it", c.v, got, c.want)
		}
	}
}
