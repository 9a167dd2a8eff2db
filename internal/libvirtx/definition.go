package libvirtx

// keepTPMSince is the libvirt version that can be told to leave a TPM's state; those before keep it only if the domain's
// definition says so (persistent_state).
const keepTPMSince = 8009000

// UndefineFlags are virDomainUndefineFlagsValues for Conn's Undefine with a libvirt of this version: leave what the guest
// would need again, and refuse where there is more. It is for the drivers.
func UndefineFlags(version uint64) uint32 {
	const keepNVRAM, keepTPM = 8, 64
	if version >= keepTPMSince {
		return keepNVRAM | keepTPM
	}
	return keepNVRAM
}
