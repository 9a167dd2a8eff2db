package nbd

// Numbers of the protocol, from doc/proto.md of github.com/NetworkBlockDevice/nbd. All fields are big
// endian.

const (
	magicInit     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOpts     = 0x49484156454F5054 // "IHAVEOPT"
	magicOptReply = 0x0003e889045565a9
	magicRequest  = 0x25609513
	magicSimple   = 0x67446698
	magicChunk    = 0x668e33ef

	// handshake flags, of server and client alike
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMeta        = 9
	optSetMeta         = 10

	repAck        = 1
	repServer     = 2
	repInfo       = 3
	repMeta       = 4
	repErr        = 1 << 31
	repErrUnsup   = repErr + 1
	repErrPolicy  = repErr + 2
	repErrInvalid = repErr + 3
	repErrTLSReqd = repErr + 5
	repErrUnknown = repErr + 6
	repErrShut    = repErr + 7
	repErrTooBig  = repErr + 9

	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3

	// transmission flags
	txHasFlags    = 1 << 0
	txReadOnly    = 1 << 1
	txFlush       = 1 << 2
	txFUA         = 1 << 3
	txTrim        = 1 << 5
	txWriteZeroes = 1 << 6
	txDF          = 1 << 7
	txMultiConn   = 1 << 8

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	cmdFlagFUA    = 1 << 0
	cmdFlagNoHole = 1 << 1
	cmdFlagDF     = 1 << 2
	cmdFlagReqOne = 1 << 3

	chunkDone        = 1 << 0 // flag: the reply's last chunk
	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkBlockStatus = 5
	chunkErr         = 1 << 15 // set in every type that reports an error
	chunkError       = chunkErr + 1
	chunkErrorOffset = chunkErr + 2

	stateHole = 1 << 0
	stateZero = 1 << 1

	requestSize = 28 // bytes: magic 4, flags 2, command 2, cookie 8, offset 8, length 4
	simpleSize  = 16 // bytes: magic 4, error 4, cookie 8
	chunkSize   = 20 // bytes: magic 4, flags 2, type 2, cookie 8, length 4

	maxPayload    = 32 << 20 // bytes of data in one request, the protocol's customary limit
	maxString     = 4096     // bytes of a name, the protocol's limit
	contextAlloc  = "base:allocation"
	contextID     = 1
	defaultPort   = "10809"
	defaultPrefer = 4096
)
