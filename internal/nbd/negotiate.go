package nbd

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// export is what a server says of an export.
type export struct {
	size               uint64 // bytes
	flags              uint16 // transmission flags
	minBlock, maxBlock uint32 // bytes; 1 and 32 MiB unless the server says so
	structured         bool
	status             bool   // base:allocation is to be had
	contextID          uint32 // under this number
}

const (
	maxReplyLen = 64 << 10 // bytes of one reply to an option
	maxReplies  = 256      // to one option
)

// haggle is the client's side of the handshake.
type haggle struct {
	conn io.ReadWriter
}

// errRefused is a server's error reply to an option.
var errRefused = errors.New("refused by the server")

// negotiate goes through the handshake up to transmission, over TLS with a configuration for it. What follows goes over the
// connection that it returns.
func negotiate(conn net.Conn, name string, config *tls.Config) (net.Conn, export, error) {
	e := export{minBlock: 1, maxBlock: maxPayload}
	be := binary.BigEndian
	var hello [18]byte
	if _, err := io.ReadFull(conn, hello[:]); err != nil {
		return conn, e, fmt.Errorf("handshake: no greeting: %w", err)
	}
	if be.Uint64(hello[:]) != magicInit {
		return conn, e, errors.New("handshake: this is no NBD server")
	}
	if be.Uint64(hello[8:]) != magicOpts {
		return conn, e, errors.New("handshake: the server speaks the obsolete oldstyle protocol only")
	}
	flags := be.Uint16(hello[16:])
	if flags&flagFixedNewstyle == 0 {
		return conn, e, errors.New("handshake: the server does not speak fixed newstyle")
	}
	if _, err := conn.Write(be.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes)))); err != nil {
		return conn, e, fmt.Errorf("handshake: %w", err)
	}
	if config != nil {
		if err := (haggle{conn}).option(optStartTLS, nil, nil); err != nil {
			return conn, e, fmt.Errorf("handshake: TLS: %w", err)
		}
		secure := tls.Client(conn, config)
		if err := secure.Handshake(); err != nil {
			return conn, e, fmt.Errorf("handshake: TLS: %w", err)
		}
		conn = secure
	}
	e, err := (haggle{conn}).export(e, name, flags)
	return conn, e, err
}

// export negotiates what is to be had of an export.
func (h haggle) export(e export, name string, flags uint16) (export, error) {
	if err := h.structured(&e, name); err != nil {
		return e, err
	}
	err := h.option(optGo, append(withLength(nil, name), 0, 1, 0, infoBlockSize), func(kind uint32, b []byte) error {
		return e.learn(kind, b)
	})
	if errors.Is(err, errUnsup) {
		return e, h.exportName(&e, name, flags)
	}
	if err == nil && e.flags&txHasFlags == 0 {
		err = errors.New("the server did not say how large the export is")
	}
	if err != nil {
		return e, fmt.Errorf("handshake: export %q: %w", name, err)
	}
	return e, nil
}

// structured asks for structured replies and, given those, for base:allocation.
func (h haggle) structured(e *export, name string) error {
	err := h.option(optStructuredReply, nil, nil)
	if errors.Is(err, errRefused) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("handshake: structured replies: %w", err)
	}
	e.structured = true
	query := withLength(append(withLength(nil, name), 0, 0, 0, 1), contextAlloc)
	err = h.option(optSetMeta, query, func(kind uint32, b []byte) error {
		if kind == repMeta && len(b) >= 4 && string(b[4:]) == contextAlloc {
			e.status, e.contextID = true, binary.BigEndian.Uint32(b)
		}
		return nil
	})
	if err != nil && !errors.Is(err, errRefused) {
		return fmt.Errorf("handshake: metadata context: %w", err)
	}
	return nil
}

// learn takes one information reply to NBD_OPT_GO.
func (e *export) learn(kind uint32, b []byte) error {
	be := binary.BigEndian
	if kind != repInfo || len(b) < 2 {
		return fmt.Errorf("unexpected reply of type %d", kind)
	}
	switch be.Uint16(b) {
	case infoExport:
		if len(b) != 12 {
			return fmt.Errorf("export information of %d bytes, want 12", len(b))
		}
		e.size, e.flags = be.Uint64(b[2:]), be.Uint16(b[10:])
	case infoBlockSize:
		if len(b) != 14 {
			return fmt.Errorf("block size information of %d bytes, want 14", len(b))
		}
		e.minBlock, e.maxBlock = be.Uint32(b[2:]), be.Uint32(b[10:])
	}
	return nil
}

// exportName is the old way into transmission, for servers without NBD_OPT_GO.
func (h haggle) exportName(e *export, name string, flags uint16) error {
	if err := h.send(optExportName, []byte(name)); err != nil {
		return err
	}
	b := make([]byte, 10, 134)
	if flags&flagNoZeroes == 0 {
		b = b[:134]
	}
	if _, err := io.ReadFull(h.conn, b); err != nil {
		return fmt.Errorf("handshake: no export %q: %w", name, err)
	}
	e.size, e.flags = binary.BigEndian.Uint64(b), binary.BigEndian.Uint16(b[8:])
	return nil
}

func (h haggle) send(opt uint32, data []byte) error {
	be := binary.BigEndian
	b := be.AppendUint64(nil, magicOpts)
	b = be.AppendUint32(b, opt)
	b = be.AppendUint32(b, uint32(len(data)))
	_, err := h.conn.Write(append(b, data...))
	return err
}

var errUnsup = fmt.Errorf("option not supported: %w", errRefused)

// option sends one option and gives its replies to each, until the server acknowledged or refused it.
func (h haggle) option(opt uint32, data []byte, each func(kind uint32, data []byte) error) error {
	if err := h.send(opt, data); err != nil {
		return err
	}
	be := binary.BigEndian
	for range maxReplies {
		var head [20]byte
		if _, err := io.ReadFull(h.conn, head[:]); err != nil {
			return err
		}
		got, kind, length := be.Uint32(head[8:]), be.Uint32(head[12:]), be.Uint32(head[16:])
		if be.Uint64(head[:]) != magicOptReply || got != opt {
			return fmt.Errorf("the reply to option %d is none", opt)
		}
		if length > maxReplyLen {
			return fmt.Errorf("the reply to option %d has %d bytes, the limit is %d", opt, length, maxReplyLen)
		}
		b := make([]byte, length)
		if _, err := io.ReadFull(h.conn, b); err != nil {
			return err
		}
		switch {
		case kind == repAck:
			return nil
		case kind == repErrUnsup:
			return errUnsup
		case kind&repErr != 0:
			return fmt.Errorf("%w: %s", errRefused, refusal(kind, b))
		case each != nil:
			if err := each(kind, b); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("more than %d replies to option %d", maxReplies, opt)
}

// refusal says what an error reply means; servers may add words of their own.
func refusal(kind uint32, text []byte) string {
	what := map[uint32]string{
		repErrPolicy: "forbidden by its configuration", repErrInvalid: "invalid request",
		repErrTLSReqd: "it requires TLS: write nbds:// and have certificates", repErrUnknown: "no such export",
		repErrShut: "it is shutting down", repErrTooBig: "request too big",
	}[kind]
	if what == "" {
		what = fmt.Sprintf("error %#x", kind)
	}
	if len(text) > 0 {
		what += fmt.Sprintf(" (%q)", text)
	}
	return what
}
