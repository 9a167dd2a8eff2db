package main

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// Two hosts, each with a loop device of its own over one disk, open the volume at the same moment, again and again.
func TestTwoHostsRace(t *testing.T) {
	t.Parallel()
	need(t, "root", "losetup")
	const rounds = 50
	b := newBench(t)
	b.truncate("lun", 8*mib)
	luns := [2]string{b.loop("lun"), b.loop("lun")}
	b.run("store", "create", "--size", "1M", "--name", "v", luns[0]).exits(0)
	hosts := [2]string{uuid.NewString(), uuid.NewString()}
	var won [2]int
	for round := range rounds {
		var s [2]*server
		for i := range s {
			sock, run := b.path("s"+strconv.Itoa(i)), b.path("run"+strconv.Itoa(i))
			s[i] = b.launchArgs(luns[i], sock, "--run-dir", run, "serve", "--socket", sock, "--host-uuid", hosts[i], luns[i])
		}
		up := func(i int) bool { _, err := s[i].engine().Status(t.Context()); return err == nil }
		eventually(t, "one serves, the other is refused", func() bool {
			if s[0].ended() && s[1].ended() {
				t.Fatalf("round %d: neither opens it\n%s\n%s", round, &s[0].log, &s[1].log)
			}
			if up(0) && up(1) {
				t.Fatalf("round %d: both have it open", round)
			}
			return s[0].ended() && up(1) || s[1].ended() && up(0)
		})
		winner := 0
		if s[0].ended() {
			winner = 1
		}
		won[winner]++
		s[1-winner].wait(exitLocked)
		if log := s[1-winner].log.String(); !strings.Contains(log, "open on another host") || !strings.Contains(log, hosts[winner]) {
			t.Errorf("round %d: the other was told: %s", round, log)
		}
		s[winner].stop()
	}
	t.Logf("won %d and %d", won[0], won[1])
	b.run("store", "verify", luns[0]).exits(0)
}

// A host that died while it opened a store is never guessed dead: another one is told what to do.
func TestClaimOfADeadHost(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.run("store", "create", "--size", "1M", b.path("c.vcow")).exits(0)
	id, dead := uuid.MustParse(b.info("c.vcow").UUID), uuid.New()
	put := func(slot int, sector []byte) {
		t.Helper()
		f, err := os.OpenFile(b.path("c.vcow"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt(sector, cowfmt.ClaimOffset+int64(slot)*cowfmt.SlotSize)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	claim, err := cowfmt.ClaimSlot{Host: dead, Boot: uuid.New(), Instance: uuid.New(), HostName: "hv9", Time: 1700000000000, Nonce: 5}.Encode(id, 9)
	if err != nil {
		t.Fatal(err)
	}
	put(9, claim)
	b.run("serve", "--socket", b.path("s"), b.path("c.vcow")).exits(exitLocked).
		says("being opened on another host", "hv9", dead.String(), "2023-11-1", "virt-cow store claims --clear "+dead.String()+" "+b.path("c.vcow"))
	b.run("store", "claims", b.path("c.vcow")).exits(0).says("raised", "hv9", dead.String())
	b.run("store", "claims", "--clear", uuid.NewString(), b.path("c.vcow")).exits(exitFailed).says("no such claim")
	b.run("store", "claims", "--clear", "9", b.path("c.vcow")).exits(exitFailed).says("no such claim") // it is not damaged
	b.run("store", "claims", "--clear", "hv9", b.path("c.vcow")).exits(exitUsage)
	var list []claimInfo
	b.run("--json", "store", "claims", b.path("c.vcow")).exits(0).json(&list)
	if len(list) != 1 || list[0].Slot != 9 || !list[0].Raised || list[0].Host != dead.String() {
		t.Errorf("%+v", list)
	}
	f, err := blockdev.OpenFile(t.Context(), b.path("c.vcow"), blockdev.FileOptions{Lock: blockdev.LockExclusive})
	if err != nil {
		t.Fatal(err)
	}
	b.run("store", "claims", "--clear", dead.String(), b.path("c.vcow")).exits(exitLocked)
	f.Close()
	b.run("store", "claims", "--clear", dead.String(), b.path("c.vcow")).exits(0).says("1 claim cleared")
	b.serve("c.vcow").stop()

	claim[100]++
	put(3, claim)
	b.run("store", "claims", b.path("c.vcow")).exits(0).says("damaged")
	s := b.launch("c.vcow")
	s.wait(exitFailed)
	if !strings.Contains(s.log.String(), "claims --clear 3 "+b.path("c.vcow")) {
		t.Errorf("a damaged slot: %s", &s.log)
	}
	var cleared struct{ Cleared int }
	if b.run("--json", "store", "claims", "--clear", "3", b.path("c.vcow")).exits(0).json(&cleared); cleared.Cleared != 1 {
		t.Errorf("%+v", cleared)
	}
	b.run("--json", "store", "claims", b.path("c.vcow")).exits(0).json(&list)
	if len(list) != 0 {
		t.Errorf("%+v", list)
	}
	// An engine that waits for another host's claim ends when it is told to.
	put(9, make([]byte, cowfmt.SlotSize))
	claim[100]--
	put(9, claim)
	s = b.launch("c.vcow")
	eventually(t, "it waits", func() bool { return s.hasOpen("c.vcow") })
	s.signal(syscall.SIGTERM)
	s.wait(exitLocked)
}
