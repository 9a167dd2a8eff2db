package uring

// The kernel's ABI, from include/uapi/linux/io_uring.h. Numbers and layouts are the kernel's.

const (
	opReadv       = 1
	opPollAdd     = 6
	opAsyncCancel = 14
	opRead        = 22
	opWrite       = 23
	opRecv        = 27

	setupClamp        = 1 << 4
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13

	featSingleMmap = 1 << 0
	featNoDrop     = 1 << 1
	featFastPoll   = 1 << 5
	featRequired   = featSingleMmap | featNoDrop | featFastPoll

	enterGetEvents      = 1 << 0
	enterRegisteredRing = 1 << 4

	registerRingFds   = 20
	unregisterRingFds = 21

	offSQRing = 0
	offSQEs   = 0x10000000

	rwfDSync = 2 // RWF_DSYNC of include/uapi/linux/fs.h
)

// sqe is struct io_uring_sqe, 64 bytes.
type sqe struct {
	opcode   uint8
	flags    uint8
	ioprio   uint16
	fd       int32
	off      uint64
	addr     uint64
	len      uint32
	opFlags  uint32
	userData uint64
	_        [3]uint64
}

// cqe is struct io_uring_cqe, 16 bytes.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

type sqOffsets struct {
	head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
	_                                                           uint64
}

type cqOffsets struct {
	head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
	_                                                           uint64
}

// params is struct io_uring_params.
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFd uint32
	_                                                                      [3]uint32
	sq                                                                     sqOffsets
	cq                                                                     cqOffsets
}

// ringUpdate is struct io_uring_rsrc_update, as IORING_REGISTER_RING_FDS takes it.
type ringUpdate struct {
	offset uint32
	_      uint32
	data   uint64
}
