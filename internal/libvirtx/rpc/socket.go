package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
)

// The length of a packet counts its own 4 bytes and the header's 24; libvirt's own limit is 32 MiB.
const (
	minPacket = 28
	maxPacket = 32<<20 + minPacket
)

// socket is the connection the library reads and writes. It counts what comes, tells of the end, and lets no
// packet through whose length can't be.
type socket struct {
	net.Conn
	ended func(reason string)
	read  atomic.Int64 // bytes

	// Of the packet being read, only by the library's one reader.
	head []byte // of its length
	left int    // bytes after that
}

// Dial gives the library its connection. It asks once.
func (s *socket) Dial() (net.Conn, error) { return s, nil }

func (s *socket) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	s.read.Add(int64(n))
	if bad := s.check(p[:n]); bad != nil {
		n, err = 0, bad
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			s.ended("libvirtd closed it")
		} else {
			s.ended(err.Error())
		}
	}
	return n, err
}

// check follows the packets in what was read.
func (s *socket) check(p []byte) error {
	for len(p) > 0 {
		if s.left > 0 {
			n := min(s.left, len(p))
			s.left, p = s.left-n, p[n:]
			continue
		}
		s.head, p = append(s.head, p[0]), p[1:]
		if len(s.head) < 4 {
			continue
		}
		length := binary.BigEndian.Uint32(s.head)
		if length < minPacket || length > maxPacket {
			return fmt.Errorf("dropped: a packet of %d bytes is none of libvirt's", length)
		}
		s.head, s.left = s.head[:0], int(length)-4
	}
	return nil
}

// Close ends the session too: the library closes what it gave up.
func (s *socket) Close() error {
	s.ended("closed by the library")
	return s.Conn.Close()
}
