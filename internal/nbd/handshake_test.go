package nbd

import (
	"bytes"
	"errors"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

func TestOptions(t *testing.T) {
	s := testServer(newMemory(1<<20), false)
	s.Name = "vol"
	s.Description = "a disk"
	defer s.Close()
	w := join(t, s)
	w.greet(3)
	size := pack(uint64(1 << 20))
	flags := uint16(txHasFlags | txFlush | txFUA | txTrim | txWriteZeroes | txMultiConn)
	export := func(f uint16) []byte { return pack(uint16(0), size, f) }
	blocks := pack(uint16(infoBlockSize), uint32(512), uint32(4096), uint32(32<<20))
	for _, c := range []struct {
		name string
		say  []byte
		want []optReply // data nil: any
	}{
		{"list", option(optList), []optReply{{optList, repServer, pack(uint32(3), "vol")}, {optList, repAck, []byte{}}}},
		{"list with data", option(optList, "x"), []optReply{{optList, repErrInvalid, nil}}},
		{"TLS", option(optStartTLS), []optReply{{optStartTLS, repErrUnsup, nil}}},
		{"unknown", option(77, "some data"), []optReply{{77, repErrUnsup, nil}}},
		{"info", option(optInfo, uint32(3), "vol", uint16(3), uint16(infoName), uint16(infoDescription), uint16(99)),
			[]optReply{{optInfo, repInfo, export(flags)}, {optInfo, repInfo, blocks},
				{optInfo, repInfo, pack(uint16(infoName), "vol")},
				{optInfo, repInfo, pack(uint16(infoDescription), "a disk")}, {optInfo, repAck, []byte{}}}},
		{"info of another", option(optInfo, uint32(5), "other", uint16(0)), []optReply{{optInfo, repErrUnknown, nil}}},
		{"go to another", option(optGo, uint32(5), "other", uint16(0)), []optReply{{optGo, repErrUnknown, nil}}},
		{"go, name too long", option(optGo, uint32(5000), "other", uint16(0)), []optReply{{optGo, repErrInvalid, nil}}},
		{"go, too few types", option(optGo, uint32(0), uint16(2), uint16(0)), []optReply{{optGo, repErrInvalid, nil}}},
		{"go, empty", option(optGo), []optReply{{optGo, repErrInvalid, nil}}},
		{"contexts too early", option(optSetMeta, uint32(0), uint32(0)), []optReply{{optSetMeta, repErrInvalid, nil}}},
		{"structured with data", option(optStructuredReply, "x"), []optReply{{optStructuredReply, repErrInvalid, nil}}},
		{"structured", option(optStructuredReply), []optReply{{optStructuredReply, repAck, []byte{}}}},
		{"contexts, all", option(optListMeta, uint32(0), uint32(0)),
			[]optReply{{optListMeta, repMeta, pack(uint32(0), contextAlloc)}, {optListMeta, repAck, []byte{}}}},
		{"contexts, base:", option(optListMeta, uint32(3), "vol", uint32(1), uint32(5), "base:"),
			[]optReply{{optListMeta, repMeta, pack(uint32(0), contextAlloc)}, {optListMeta, repAck, []byte{}}}},
		{"contexts, others", option(optListMeta, uint32(3), "vol", uint32(1), uint32(3), "x:y"),
			[]optReply{{optListMeta, repAck, []byte{}}}},
		{"contexts of another", option(optSetMeta, uint32(1), "z", uint32(0)), []optReply{{optSetMeta, repErrUnknown, nil}}},
		{"contexts, cut short", option(optSetMeta, uint32(0), uint32(2), uint32(1), "q"), []optReply{{optSetMeta, repErrInvalid, nil}}},
		{"contexts, too long", option(optSetMeta, uint32(0), uint32(1), uint32(1), "qq"), []optReply{{optSetMeta, repErrInvalid, nil}}},
		{"contexts, too many", option(optSetMeta, uint32(0), uint32(1<<31)), []optReply{{optSetMeta, repErrTooBig, nil}}},
		{"set", option(optSetMeta, uint32(0), uint32(2), uint32(3), "x:y", uint32(15), contextAlloc),
			[]optReply{{optSetMeta, repMeta, pack(uint32(contextID), contextAlloc)}, {optSetMeta, repAck, []byte{}}}},
		{"go", option(optGo, uint32(0), uint16(0)),
			[]optReply{{optGo, repInfo, export(flags | txDF)}, {optGo, repInfo, blocks}, {optGo, repAck, []byte{}}}},
	} {
		w.say(c.say)
		got := w.ack()
		for i := range got {
			if i < len(c.want) && c.want[i].data == nil {
				got[i].data = nil
			}
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	w.say(req(cmdFlush, 0, 7, 0, 0))
	if code, cookie := w.simple(); code != 0 || cookie != 7 {
		t.Errorf("in transmission: flush answered %d, %d", code, cookie)
	}
}

func TestExportName(t *testing.T) {
	s := testServer(newMemory(1<<20), false)
	s.Name = "vol"
	defer s.Close()
	for flags, zeros := range map[uint32]int{0: 124, 1: 124, 2: 0, 3: 0} {
		w := join(t, s)
		w.greet(flags)
		w.say(option(optExportName, "vol"))
		w.hear(10 + zeros)
		w.say(req(cmdRead, 0, 1, 0, 512))
		if code, _ := w.simple(); code != 0 {
			t.Errorf("read: %d", code)
		}
		w.hear(512)
		w.say(req(cmdDisc, 0, 0, 0, 0))
		w.gone()
	}
}

// Handshakes that end the connection: each is logged once, and the server goes on.
func TestBadHandshake(t *testing.T) {
	t.Parallel()
	eachLoop(t, func(t *testing.T, noRing bool) {
		m := newMemory(1 << 20)
		s, impatient := testServer(m, noRing), testServer(m, noRing)
		s.Name, impatient.Name = "vol", "vol"
		var log syncLog
		s.Log = zerolog.New(&log).Level(zerolog.InfoLevel)
		impatient.Log = s.Log
		s.Limits.Handshake, impatient.Limits.Handshake = time.Minute, 2*time.Second
		defer s.Close()
		defer impatient.Close()
		healthy := join(t, s).enter(false)
		for _, c := range []struct {
			name, why string
			say       []byte
			half      bool // and no more will come
		}{
			{"flags", "client flags", pack(uint32(8)), false},
			{"magic", "option magic", pack(uint32(3), "this is no option"), false},
			{"huge option", "the limit is", pack(uint32(3), uint64(magicOpts), uint32(optGo), uint32(1<<31)), false},
			{"wrong name", "no export", pack(uint32(3), option(optExportName, "x")), false},
			{"too many", "more than 64 options", pack(uint32(3), bytes.Repeat(option(77), 65)), false},
			{"end in flags", "client flags: unexpected EOF", pack(uint16(0)), true},
			{"end in option", "option 7: unexpected EOF", pack(uint32(3), option(optGo, uint32(9))[:18]), true},
			{"says nothing", "i/o timeout", nil, false},
			{"says little", "i/o timeout", pack(uint32(3), "IHAVE"), false},
		} {
			on := s
			if c.why == "i/o timeout" {
				on = impatient
			}
			w := join(t, on)
			if on == s {
				w.hear(18) // the other's time may be up before it says that
			}
			w.Write(c.say)
			if c.half {
				w.CloseWrite()
			}
			w.gone()
			until(t, c.name+" is logged", func() bool { return strings.Contains(log.String(), c.why) })
			if n := strings.Count(log.String(), "\n"); n != 1 {
				t.Errorf("%s: %d lines logged:\n%s", c.name, n, log.String())
			}
			log.mu.Lock()
			log.buf.Reset()
			log.mu.Unlock()
		}
		w := join(t, s)
		w.greet(3)
		w.say(option(optAbort))
		w.ack()
		w.gone()
		healthy.say(req(cmdFlush, 0, 7, 0, 0))
		if code, cookie := healthy.simple(); code != 0 || cookie != 7 {
			t.Errorf("the other connection: %d, %d", code, cookie)
		}
	})
}

func TestAdmission(t *testing.T) {
	s := testServer(newMemory(1<<20), false)
	s.Limits.Conns = 2
	refuse := errors.New("not you")
	asked := 0
	s.Accept = func(c *net.UnixConn) error {
		if asked++; asked == 1 {
			return refuse
		}
		return nil
	}
	var log syncLog
	s.Log = zerolog.New(&log)
	join(t, s).gone()
	if !strings.Contains(log.String(), "not you") {
		t.Errorf("log %q", log.String())
	}
	a, b := join(t, s).enter(false), join(t, s).enter(true)
	join(t, s).gone()
	if n := s.Conns(); n != 2 || !strings.Contains(log.String(), "2 connections are open") {
		t.Errorf("%d connections, log %q", n, log.String())
	}
	a.Close()
	until(t, "the first is gone", func() bool { return s.Conns() == 1 })
	c := join(t, s).enter(false)
	s.Close()
	b.gone()
	c.gone()
	join(t, s).gone()
	if s.Conns() != 0 {
		t.Errorf("%d connections after Close", s.Conns())
	}
}
