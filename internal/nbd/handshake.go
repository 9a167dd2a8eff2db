package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A handshake may be this long: more is no client but an attack or a mistake.
const (
	maxOptions   = 64       // options of a client
	maxOptionLen = 16 << 10 // bytes of one; two names of the longest fit
	maxQueries   = 64       // metadata contexts asked for in one option
)

// handshake negotiates until the client enters transmission (nil) or leaves (an error).
func (c *conn) handshake() error {
	c.info = c.srv.Backend.Info()
	flags, err := greet(c.uc)
	if err != nil {
		return err
	}
	for range maxOptions {
		done, err := c.option(flags)
		if err != nil {
			return fmt.Errorf("handshake: %w", err)
		}
		if done {
			return nil
		}
	}
	return fmt.Errorf("handshake: more than %d options", maxOptions)
}

// greet says hello, and returns the client's flags.
func greet(rw io.ReadWriter) (flags uint32, err error) {
	be := binary.BigEndian
	hello := be.AppendUint64(nil, magicInit)
	hello = be.AppendUint64(hello, magicOpts)
	hello = be.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := rw.Write(hello); err != nil {
		return 0, fmt.Errorf("handshake: %w", err)
	}
	var four [4]byte
	if _, err := io.ReadFull(rw, four[:]); err != nil {
		return 0, fmt.Errorf("handshake: client flags: %w", err)
	}
	flags = be.Uint32(four[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return 0, fmt.Errorf("handshake: client flags %#x, not known to the protocol", flags)
	}
	return flags, nil
}

// readOption takes one option of a client.
func readOption(r io.Reader) (opt uint32, data []byte, err error) {
	be := binary.BigEndian
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, fmt.Errorf("option: %w", err)
	}
	if m := be.Uint64(head[:]); m != magicOpts {
		return 0, nil, fmt.Errorf("option magic %#x, want %#x", m, uint64(magicOpts))
	}
	opt, length := be.Uint32(head[8:]), be.Uint32(head[12:])
	if length > maxOptionLen {
		return 0, nil, fmt.Errorf("option %d of %d bytes, the limit is %d", opt, length, maxOptionLen)
	}
	data = make([]byte, length)
	if _, err := io.ReadFull(r, data); err != nil {
		return 0, nil, fmt.Errorf("option %d: %w", opt, err)
	}
	return opt, data, nil
}

// option serves one option; true when it led to transmission.
func (c *conn) option(flags uint32) (bool, error) {
	opt, data, err := readOption(c.uc)
	if err != nil {
		return false, err
	}
	length := len(data)
	switch opt {
	case optExportName:
		if !c.srv.serves(string(data)) {
			return false, fmt.Errorf("no export %q, this is %q", data, c.srv.Name) // the protocol has no answer
		}
		return true, c.enter(flags)
	case optAbort:
		c.answer(opt, repAck, nil) // the client may be gone already
		return false, errAborted
	case optList:
		if length != 0 {
			return false, c.refuse(opt, repErrInvalid, "a list request has no data")
		}
		return false, errors.Join(
			c.answer(opt, repServer, withLength(nil, c.srv.Name)),
			c.answer(opt, repAck, nil))
	case optInfo, optGo:
		return c.optGo(opt, data)
	case optStructuredReply:
		if length != 0 {
			return false, c.refuse(opt, repErrInvalid, "structured replies have no data")
		}
		c.structured = true
		return false, c.answer(opt, repAck, nil)
	case optListMeta, optSetMeta:
		return false, c.optMeta(opt, data)
	}
	return false, c.refuse(opt, repErrUnsup, "not supported here")
}

// serves says whether name is this server's export.
func (s *Server) serves(name string) bool { return name == "" || name == s.Name }

// enter answers NBD_OPT_EXPORT_NAME.
func (c *conn) enter(flags uint32) error {
	be := binary.BigEndian
	b := be.AppendUint64(nil, uint64(c.info.Size))
	b = be.AppendUint16(b, c.transmissionFlags())
	if flags&flagNoZeroes == 0 {
		b = append(b, make([]byte, 124)...)
	}
	_, err := c.uc.Write(b)
	return err
}

// transmissionFlags is what the export can do. MULTI_CONN is true because all connections share one
// engine, whose FLUSH covers what any of them wrote. FAST_ZERO is not offered: zeroing may be slow.
func (c *conn) transmissionFlags() uint16 {
	f := uint16(txHasFlags | txFlush | txFUA | txMultiConn)
	if c.info.ReadOnly {
		f |= txReadOnly
	} else {
		f |= txTrim | txWriteZeroes
	}
	if c.structured {
		f |= txDF
	}
	return f
}

// optGo answers NBD_OPT_INFO and NBD_OPT_GO. Data: name length 4, name, count 2, info types 2 each.
func (c *conn) optGo(opt uint32, data []byte) (bool, error) {
	be := binary.BigEndian
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 2 || len(rest) != 2+2*int(be.Uint16(rest)) {
		return false, c.refuse(opt, repErrInvalid, "lengths do not add up")
	}
	if !c.srv.serves(name) {
		return false, c.refuse(opt, repErrUnknown, "no such export")
	}
	info := be.AppendUint16(nil, infoExport)
	info = be.AppendUint64(info, uint64(c.info.Size))
	info = be.AppendUint16(info, c.transmissionFlags())
	err := c.answer(opt, repInfo, info)
	// Block sizes matter to everybody, asked for or not: minimum 512, the engine does less than a
	// device's block itself.
	sizes := be.AppendUint16(nil, infoBlockSize)
	for _, n := range []int{512, orDefault(c.srv.PreferredBlock, defaultPrefer), maxPayload} {
		sizes = be.AppendUint32(sizes, uint32(n))
	}
	err = errors.Join(err, c.answer(opt, repInfo, sizes))
	for t := rest[2:]; len(t) > 0; t = t[2:] {
		switch kind := be.Uint16(t); kind {
		case infoName:
			err = errors.Join(err, c.answer(opt, repInfo, append(be.AppendUint16(nil, kind), c.srv.Name...)))
		case infoDescription:
			if c.srv.Description != "" {
				err = errors.Join(err, c.answer(opt, repInfo, append(be.AppendUint16(nil, kind), c.srv.Description...)))
			}
		}
	}
	err = errors.Join(err, c.answer(opt, repAck, nil))
	return opt == optGo && err == nil, err
}

// optMeta answers NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. Data: name length 4, name,
// count 4, and for each query length 4, query.
func (c *conn) optMeta(opt uint32, data []byte) error {
	if opt == optSetMeta {
		c.status = false // each use replaces what was set before
	}
	name, rest, ok := cutString(data)
	if !c.structured || !ok || len(rest) < 4 {
		return c.refuse(opt, repErrInvalid, "needs structured replies, a name and queries")
	}
	count := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	if count > maxQueries {
		return c.refuse(opt, repErrTooBig, "too many queries")
	}
	found := count == 0 && opt == optListMeta
	for range count {
		var query string
		if query, rest, ok = cutString(rest); !ok {
			return c.refuse(opt, repErrInvalid, "lengths do not add up")
		}
		found = found || query == contextAlloc || opt == optListMeta && query == "base:"
	}
	if len(rest) != 0 {
		return c.refuse(opt, repErrInvalid, "lengths do not add up")
	}
	if !c.srv.serves(name) {
		return c.refuse(opt, repErrUnknown, "no such export")
	}
	var err error
	if found {
		id := uint32(0) // reserved when listing
		if opt == optSetMeta {
			c.status, id = true, contextID
		}
		err = c.answer(opt, repMeta, append(binary.BigEndian.AppendUint32(nil, id), contextAlloc...))
	}
	return errors.Join(err, c.answer(opt, repAck, nil))
}

// answer sends one reply to an option.
func (c *conn) answer(opt, kind uint32, data []byte) error { return writeReply(c.uc, opt, kind, data) }

func writeReply(w io.Writer, opt, kind uint32, data []byte) error {
	be := binary.BigEndian
	b := be.AppendUint64(make([]byte, 0, 20+len(data)), magicOptReply)
	b = be.AppendUint32(b, opt)
	b = be.AppendUint32(b, kind)
	b = be.AppendUint32(b, uint32(len(data)))
	_, err := w.Write(append(b, data...))
	return err
}

// refuse answers an option with an error; the handshake goes on.
func (c *conn) refuse(opt, kind uint32, why string) error { return c.answer(opt, kind, []byte(why)) }

// withLength appends a string with its length, 4 bytes, before it.
func withLength(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// cutString takes a string with its length off the front of b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if n > maxString || int(n) > len(b)-4 {
		return "", nil, false
	}
	return string(b[4 : 4+n]), b[4+n:], true
}
