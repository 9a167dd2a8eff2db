package cowfmt

import (
	"encoding/binary"
	"fmt"

	"github.com/google/uuid"
)

// ClaimSlot is a host's flag, raised to settle who opens a volume; see "Claiming" in docs/FORMAT.md.
type ClaimSlot struct {
	Host     uuid.UUID
	Boot     uuid.UUID
	Instance uuid.UUID
	HostName string
	Time     int64  // Unix milliseconds, by the clock of the one who claims
	Nonce    uint64 // new for each claim; 0: lowered, the host claims nothing and keeps the slot
}

// MigrationSlot is one host's side of a hand-over. Only that host writes it; the others find it by Host.
type MigrationSlot struct {
	Host     uuid.UUID
	HostName string
	State    SlotState
	Epoch    uint32    // of the header the host had read
	Grant    uuid.UUID // the grant it is about
	Sequence uint64    // moves on with each write of the slot
	Time     int64     // Unix milliseconds, by the host's clock
}

// SlotState is what a host says in its migration slot. See "Handing over" in docs/FORMAT.md.
type SlotState uint8

// The states of a migration slot: of the host that gives the volume away, and of the one that gets it.
const (
	SlotIdle    SlotState = 1 // receiver: has the volume open, may not write
	SlotOpen    SlotState = 2 // giver: may write
	SlotSealed  SlotState = 3 // giver: has drained, writes no more
	SlotReclaim SlotState = 4 // giver: wants to write again, must read the receiver's slot first
	SlotYield   SlotState = 5 // giver: wanted to, but the receiver was active
	SlotActive  SlotState = 6 // receiver: may write once it then reads SlotSealed or SlotYield
	SlotKept    SlotState = 7 // giver: may write, and the receiver gets nothing by this grant any more: the guest has stayed
)

// A slot's payload is in its first 512 bytes, so that a write of it is atomic:
// magic, CRC (over store UUID, slot number and these 512 bytes), fields, zeros.
const (
	slotPayload = 512
	slotCRC     = 4
	slotFields  = 8

	claimMagic     = 0x4d4c4356 // "VCLM"
	migrationMagic = 0x47494d56 // "VMIG"
)

// Encode returns the SlotSize bytes of claim slot number slot of a store, or ErrInvalid.
func (s ClaimSlot) Encode(store uuid.UUID, slot int) ([]byte, error) {
	if err := s.validate(); err != nil {
		return nil, fmt.Errorf("claim slot %d: %w", slot, err)
	}
	b := make([]byte, slotFields, SlotSize)
	b = append(b, s.Host[:]...)
	b = append(b, s.Boot[:]...)
	b = append(b, s.Instance[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.Time))
	b = binary.LittleEndian.AppendUint64(b, s.Nonce)
	b = appendText(b, s.HostName)
	return sealSlot(b, claimMagic, store, slot), nil
}

// DecodeClaimSlot reads claim slot number slot of a store; b must have at least its first 512 bytes. A
// slot of zeros is free: used is false. It returns ErrCorrupt or ErrInvalid for anything else.
func DecodeClaimSlot(b []byte, store uuid.UUID, slot int) (s ClaimSlot, used bool, err error) {
	f, used, err := openSlot(b, claimMagic, store, slot)
	if err == nil && used {
		s.Host, s.Boot, s.Instance = f.uuid(), f.uuid(), f.uuid()
		s.Time = f.i64()
		s.Nonce = f.u64()
		s.HostName = f.text()
		if err = f.rest(); err == nil {
			err = s.validate()
		}
	}
	if err != nil {
		return ClaimSlot{}, false, fmt.Errorf("claim slot %d: %w", slot, err)
	}
	return s, used, nil
}

func (s ClaimSlot) validate() error {
	return firstOf(checkUUID("host", s.Host), checkUUID("boot id", s.Boot), checkUUID("instance", s.Instance),
		checkText("host name", s.HostName, MaxHostName))
}

// Encode returns the SlotSize bytes of migration slot number slot of a store, or ErrInvalid.
func (s MigrationSlot) Encode(store uuid.UUID, slot int) ([]byte, error) {
	if err := s.validate(); err != nil {
		return nil, fmt.Errorf("migration slot %d: %w", slot, err)
	}
	b := make([]byte, slotFields, SlotSize)
	b = append(b, s.Host[:]...)
	b = append(b, s.Grant[:]...)
	b = binary.LittleEndian.AppendUint64(b, s.Sequence)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.Time))
	b = binary.LittleEndian.AppendUint32(b, s.Epoch)
	b = append(b, byte(s.State), 0, 0, 0)
	b = appendText(b, s.HostName)
	return sealSlot(b, migrationMagic, store, slot), nil
}

// DecodeMigrationSlot reads migration slot number slot of a store; b must have at least its first 512
// bytes. A slot of zeros is free: used is false. It returns ErrCorrupt or ErrInvalid for anything else.
func DecodeMigrationSlot(b []byte, store uuid.UUID, slot int) (s MigrationSlot, used bool, err error) {
	f, used, err := openSlot(b, migrationMagic, store, slot)
	if err == nil && used {
		s.Host, s.Grant = f.uuid(), f.uuid()
		s.Sequence = f.u64()
		s.Time = f.i64()
		s.Epoch = f.u32()
		s.State = SlotState(f.u8())
		f.zeros(3)
		s.HostName = f.text()
		if err = f.rest(); err == nil {
			err = s.validate()
		}
	}
	if err != nil {
		return MigrationSlot{}, false, fmt.Errorf("migration slot %d: %w", slot, err)
	}
	return s, used, nil
}

func (s MigrationSlot) validate() error {
	if s.State < SlotIdle || s.State > SlotKept {
		return fmt.Errorf("%w state %d", ErrInvalid, s.State)
	}
	return firstOf(checkUUID("host", s.Host), checkText("host name", s.HostName, MaxHostName))
}

func sealSlot(b []byte, magic uint32, store uuid.UUID, slot int) []byte {
	b = b[:SlotSize]
	binary.LittleEndian.PutUint32(b, magic)
	binary.LittleEndian.PutUint32(b[slotCRC:], crcAround(placeCRC(store, int64(slot), 0), b[:slotPayload], slotCRC))
	return b
}

func openSlot(b []byte, magic uint32, store uuid.UUID, slot int) (f *fields, used bool, err error) {
	if len(b) < slotPayload {
		return nil, false, fmt.Errorf("%w: %d bytes, need %d", ErrCorrupt, len(b), slotPayload)
	}
	b = b[:slotPayload]
	if allZero(b) {
		return nil, false, nil
	}
	if got := binary.LittleEndian.Uint32(b); got != magic {
		return nil, false, fmt.Errorf("%w: magic is %#08x, should be %#08x", ErrCorrupt, got, magic)
	}
	if binary.LittleEndian.Uint32(b[slotCRC:]) != crcAround(placeCRC(store, int64(slot), 0), b, slotCRC) {
		return nil, false, fmt.Errorf("%w: wrong CRC: damaged, or of another slot or store", ErrCorrupt)
	}
	return &fields{b: b[slotFields:]}, true, nil
}
