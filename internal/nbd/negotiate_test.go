package nbd

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
)

// The client over the server is a block device like any other.
func TestConformance(t *testing.T) {
	eachLoop(t, func(t *testing.T, noRing bool) {
		blockdevtest.Conformance(t, func(t *testing.T) blockdev.Device {
			sock := start(t, testServer(newMemory(8<<20), noRing))
			c, err := Dial(context.Background(), "nbd+unix:///?socket="+sock, Options{})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}, blockdevtest.WithFreshZeros())
	})
}

// after is how many more bytes scripted waits for before it goes on.
type after int64

// scripted answers one connection with bytes made beforehand, whatever the client says, and returns the
// address.
func scripted(t *testing.T, say ...any) string {
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		for _, s := range say {
			if n, ok := s.(after); ok {
				io.CopyN(io.Discard, c, int64(n))
			} else {
				c.Write(pack(s))
			}
		}
		io.Copy(io.Discard, c)
		c.Close()
	}()
	return "nbd+unix:///vol?socket=" + sock
}

func refused(opt, kind uint32, text string) []byte {
	return pack(uint64(magicOptReply), opt, kind, uint32(len(text)), text)
}

// A server with nothing but NBD_OPT_EXPORT_NAME and simple replies.
func TestClientOldServer(t *testing.T) {
	data := bytes.Repeat([]byte("12345678"), 64)
	uri := scripted(t, "NBDMAGICIHAVEOPT", uint16(1), refused(optStructuredReply, repErrUnsup, ""),
		refused(optGo, repErrUnsup, ""), uint64(1<<20), uint16(txHasFlags), make([]byte, 124),
		after(4+16+(16+11)+(16+3)), // flags and three options
		after(requestSize), uint32(magicSimple), uint32(0), uint64(1), data)
	c := dial(t, uri, Options{})
	got := make([]byte, 512)
	if _, err := c.ReadAt(got, 512); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read: %v, %q", err, got)
	}
	if ext, err := c.Extents(0, 1<<20); err != nil || len(ext) != 1 || ext[0] != (blockdev.Extent{Length: 1 << 20}) {
		t.Errorf("extents: %v, %v", ext, err)
	}
	if err := c.Flush(); err != nil { // has no cache: says nothing, and is not asked
		t.Error(err)
	}
}

// What a server may say wrong before transmission, and how the client puts it.
func TestNegotiationErrors(t *testing.T) {
	hello := pack("NBDMAGICIHAVEOPT", uint16(3), refused(optStructuredReply, repErrUnsup, ""))
	export := func(size uint64, sizes ...uint32) []byte {
		b := pack(hello, uint64(magicOptReply), uint32(optGo), uint32(repInfo), uint32(12), uint16(0), size, uint16(txHasFlags))
		if sizes != nil {
			b = pack(b, uint64(magicOptReply), uint32(optGo), uint32(repInfo), uint32(14), uint16(infoBlockSize),
				sizes[0], uint32(4096), sizes[1])
		}
		return pack(b, refused(optGo, repAck, ""))
	}
	for want, say := range map[string][]byte{
		"this is no NBD server":        []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"oldstyle":                     pack("NBDMAGIC", uint64(0x420281861253), uint64(512), uint16(1)),
		"fixed newstyle":               pack("NBDMAGICIHAVEOPT", uint16(0)),
		"requires TLS":                 pack(hello, refused(optGo, repErrTLSReqd, "use TLS")),
		`no such export ("gone")`:      pack(hello, refused(optGo, repErrUnknown, "gone")),
		"not a multiple of 512":        export(1000),
		"minimum block size 3072 of":   export(1<<20, 3<<10, 1<<20),
		"minimum block size 131072":    export(1<<20, 128<<10, 1<<20),
		"is less than the minimum":     export(1<<20, 4096, 512),
		"65537 bytes, the limit":       pack(hello, uint64(magicOptReply), uint32(optGo), uint32(repInfo), uint32(1<<16+1)),
		"the reply to option 7 is":     pack(hello, refused(99, repAck, "")),
		"did not say how large":        pack(hello, refused(optGo, repAck, "")),
		"more than 256 replies":        pack(hello, bytes.Repeat(pack(uint64(magicOptReply), uint32(optGo), uint32(repInfo), uint32(2), uint16(9)), 256)),
		"export information of 4 byte": pack(hello, uint64(magicOptReply), uint32(optGo), uint32(repInfo), uint32(4), uint32(0)),
	} {
		uri := scripted(t, say)
		c, err := Dial(context.Background(), uri, Options{})
		if err == nil {
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), uri) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
