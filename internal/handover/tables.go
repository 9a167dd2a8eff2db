package handover

// Giver is the table of the host that has the volume.
var Giver = []Rule{
	{Alone, "to be closed", func(f Facts) bool { return f.Closing }, DoRelease, Closed},
	{Alone, "another host asks for a grant", func(f Facts) bool { return f.Asked }, DoGrant, Open},

	{Open, "receiver closed", func(f Facts) bool { return f.PeerClosed }, DoEndGrant, Alone},
	{Open, "guest runs here for good", func(f Facts) bool { return f.Guest == GuestRuns }, DoKeep, Kept},
	{Open, "guest suspended by the migration, or gone", func(f Facts) bool { return f.Guest == GuestStopped && !f.Waits }, DoSeal, Sealed},
	{Open, "receiver active, guest not known of, no client", func(f Facts) bool {
		return f.Peer == SlotActive && f.Guest == GuestUnknown && !f.Clients
	}, DoSeal, Sealed},

	{Sealed, "receiver active", func(f Facts) bool { return f.Peer == SlotActive }, DoHandOver, Given},
	{Sealed, "receiver closed", func(f Facts) bool { return f.PeerClosed }, DoReclaim, Reclaim},
	{Sealed, "receiver not active, guest runs again", func(f Facts) bool { return f.Peer != Unread && runs(f.Guest) }, DoReclaim, Reclaim},
	{Sealed, "receiver not active, guest suspended, a request waits", func(f Facts) bool {
		return f.Peer != Unread && f.Guest == GuestStopped && f.Waits
	}, DoReclaim, Reclaim},

	{Reclaim, "receiver active", func(f Facts) bool { return f.Peer == SlotActive }, DoYield, Yield},
	{Reclaim, "receiver not active, and closed, or guest runs again", func(f Facts) bool {
		return f.Peer != Unread && (f.PeerClosed || runs(f.Guest))
	}, DoKeep, Kept},
	{Reclaim, "receiver not active, guest suspended", func(f Facts) bool {
		return f.Peer != Unread && f.Guest == GuestStopped
	}, DoReopen, Open},

	{Yield, "receiver active", func(f Facts) bool { return f.Peer == SlotActive }, DoHandOver, Given},
	{Yield, "receiver not active any more", func(f Facts) bool { return f.Peer != Unread }, DoReclaim, Reclaim},

	{Kept, "receiver closed", func(f Facts) bool { return f.PeerClosed }, DoEndGrant, Alone},

	{Given, "to be closed", func(f Facts) bool { return f.Closing }, DoLeave, Closed},
}

// Receiver is the table of the host that is to have the volume.
var Receiver = []Rule{
	{Idle, "header names this host", func(f Facts) bool { return f.Mine }, DoOwn, Owner},
	{Idle, "to be closed", func(f Facts) bool { return f.Closing }, DoClose, Closed},
	{Idle, "guest runs here, and a write waits or it has settled", func(f Facts) bool {
		return f.Guest == GuestRuns && (f.Waits || f.Settled)
	}, DoActivate, Active},

	{Active, "header names this host", func(f Facts) bool { return f.Mine }, DoOwn, Owner},
	{Active, "giver proven dead, and did not keep it", func(f Facts) bool { return f.PeerDead && leaves(f.Peer) }, DoTakeOver, Owner},
	{Active, "giver sealed or yielding, table ready", func(f Facts) bool {
		return (f.Peer == SlotSealed || f.Peer == SlotYield) && f.Ready
	}, DoWrite, Writer},
	// One that is sealed will hand over, and an engine that died here may have written: it is closed as the owner.
	{Active, "to be closed, giver open, or kept it", func(f Facts) bool {
		return f.Closing && (f.Peer == SlotOpen || f.Peer == SlotKept || f.Peer == Absent)
	}, DoClose, Closed},

	{Writer, "header names this host", func(f Facts) bool { return f.Mine }, DoOwn, Owner},
	{Writer, "giver proven dead", func(f Facts) bool { return f.PeerDead }, DoTakeOver, Owner},

	{Owner, "to be closed", func(f Facts) bool { return f.Closing }, DoRelease, Closed},
}

// runs says that the guest runs, whether or not the migration that suspended it has ended by now.
func runs(g Guest) bool { return g == GuestRuns || g == GuestLeaves }

// leaves says of a dead giver's slot that it has this grant and did not keep the volume.
func leaves(s Slot) bool {
	return s == SlotOpen || s == SlotSealed || s == SlotReclaim || s == SlotYield
}
