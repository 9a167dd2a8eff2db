package nbd

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// Errors on the wire. The protocol fixed the values Linux has for them.
const (
	wireEPERM     = 1
	wireEIO       = 5
	wireENOMEM    = 12
	wireEINVAL    = 22
	wireENOSPC    = 28
	wireEOVERFLOW = 75
	wireENOTSUP   = 95
	wireESHUTDOWN = 108
)

// toWire returns the protocol's error for err, 0 for nil. What has no better name is an I/O error.
func toWire(err error) uint32 {
	if err == nil {
		return 0
	}
	switch {
	case errors.Is(err, blockdev.ErrReadOnly):
		return wireEPERM
	case errors.Is(err, blockdev.ErrRange), errors.Is(err, blockdev.ErrAlign):
		return wireEINVAL
	case errors.Is(err, blockdev.ErrNotSupported), errors.Is(err, errors.ErrUnsupported):
		return wireENOTSUP
	case errors.Is(err, context.Canceled):
		return wireESHUTDOWN
	}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return wireEIO
	}
	switch errno {
	case unix.EPERM, unix.EACCES, unix.EROFS:
		return wireEPERM
	case unix.ENOMEM:
		return wireENOMEM
	case unix.EINVAL:
		return wireEINVAL
	case unix.ENOSPC, unix.EDQUOT, unix.EFBIG:
		return wireENOSPC
	case unix.EOVERFLOW:
		return wireEOVERFLOW
	case unix.ENOTSUP:
		return wireENOTSUP
	case unix.ESHUTDOWN:
		return wireESHUTDOWN
	}
	return wireEIO
}

// fromWire is the error a server's answer stands for; never nil.
func fromWire(code uint32) error {
	switch code {
	case wireEPERM, wireEIO, wireENOMEM, wireEINVAL, wireENOSPC, wireEOVERFLOW, wireESHUTDOWN:
		return unix.Errno(code)
	case wireENOTSUP:
		return blockdev.ErrNotSupported
	}
	return unix.EINVAL // the protocol's rule for values it does not know
}
