package main

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
)

const thisUUID = "11111111-2222-4333-8444-555555555555"

func hosts() api.HostList {
	return api.HostList{
		This: api.PeerHello{Host: thisUUID, HostName: "hv1", Version: "v1"},
		Hosts: []api.HostStatus{
			{HostName: "hv2", Host: hostUUID, Address: "hv2.example.com:16589", Error: "no answer within 5s", Volumes: []string{"web1", "web2"}},
			{HostName: "hv3", Host: "u3", Address: "hv3.example.com:16589", Version: "v2", Answers: true, Volumes: []string{"db1"}},
		},
	}
}

// fencing is a stage with these hosts, and a report for the word.
func fencing(b *bench, l api.HostList, r api.FencedReport) *stage {
	s := b.stage(wellStatus())
	s.on(api.PathHosts, answer(l))
	s.on(api.PathHostFenced, answer(r))
	return s
}

// words are the bodies of the calls that gave a word.
func words(s *stage) string {
	var found []string
	for _, call := range s.called() {
		if body, is := strings.CutPrefix(call, "POST "+api.PathHostFenced+" "); is {
			found = append(found, body)
		}
	}
	return strings.Join(found, "; ")
}

const theWord = `{"host":"` + hostUUID + `"}`

func report() api.FencedReport {
	return api.FencedReport{Host: hostUUID, HostName: "hv2", Volumes: []api.FencedVolume{
		{Volume: "web1", Epoch: 4}, {Volume: "web9", Epoch: 7, Grant: true},
	}}
}

func TestHostList(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	s := fencing(b, hosts(), report())
	b.run("host", "list").exits(exitDegraded).says("HOST", "hv1", thisUUID, "this host", "hv2.example.com:16589", "NO", "web1, web2", "yes", "v2", "db1",
		"\nhv2: no answer within 5s\n", "1 host of 2 without an answer")
	var l api.HostList
	b.run("host", "list", "--json").exits(exitDegraded).json(&l)
	if len(l.Hosts) != 2 || l.This.HostName != "hv1" {
		t.Errorf("%+v", l)
	}
	s.on(api.PathHosts, answer(api.HostList{This: hosts().This}))
	b.run("host", "list").exits(0).says("no other host owns a volume")
	s.on(api.PathHosts, http.NotFound)
	for _, args := range [][]string{{"host", "list"}, {"host", "fenced", "--yes", "hv2"}} {
		b.run(args...).exits(exitFailed).says("daemon is older than this program")
	}
	if w := words(s); w != "" {
		t.Error(w)
	}
}

func TestHostFenced(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	s := fencing(b, hosts(), report())
	for _, name := range []string{"hv2", hostUUID, strings.ToUpper(hostUUID), "hv2.example.com:16589"} {
		b.run("host", "fenced", "--yes", name).exits(0).says("host hv2 ("+hostUUID+") is taken for dead", "web1    4      the volume  yes",
			"web9    7      a grant     yes", "is taken over where it is needed", "Its grants are ended", "needs another")
		if w := words(s); w != theWord {
			t.Errorf("%s: %s", name, w)
		}
	}
	var r api.FencedReport
	b.run("--json", "host", "fenced", "-y", "hv2").exits(0).json(&r)
	if len(r.Volumes) != 2 || words(s) != theWord {
		t.Errorf("%+v", r)
	}
	// Unknown here: the daemon judges.
	b.run("host", "fenced", "--yes", "hv9").exits(0)
	if w := words(s); w != `{"host":"hv9"}` {
		t.Error(w)
	}
	// One that answers is dead only for who knows better.
	b.run("host", "fenced", "--yes", "hv3").exits(exitLocked).says("host hv3 answers, at hv3.example.com:16589", "--alive")
	if w := words(s); w != "" {
		t.Error(w)
	}
	b.run("host", "fenced", "--yes", "--alive", "hv3").exits(0)
	if w := words(s); w != `{"host":"u3"}` {
		t.Error(w)
	}
	half := report()
	half.Volumes[1].Error = "its header moved on"
	half.Unread = []api.FencedVolume{{Volume: "nova", Error: "input/output error"}}
	s.on(api.PathHostFenced, answer(half))
	b.run("host", "fenced", "--yes", "hv2").exits(exitDegraded).says("nova    -      not known   NO: input/output error", "NO: its header moved on",
		"does not count for 2 volumes")
	b.run("host", "fenced", "--yes", "hv2", "--json").exits(exitDegraded)
	s.on(api.PathHostFenced, answer(api.FencedReport{Host: hostUUID}))
	b.run("host", "fenced", "--yes", "hv2").exits(0).says("nothing changes")
	s.on(api.PathHostFenced, refuse(http.StatusNotFound, "no host hv2"))
	b.run("host", "fenced", "--yes", "hv2").exits(exitFailed).says("no host hv2")
}

func TestHostFencedRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := hosts()
	l.Hosts = append(l.Hosts, api.HostStatus{HostName: "hv3", Host: "u4"}, api.HostStatus{HostName: "old-name", Host: thisUUID})
	s := fencing(b, l, report())
	for name, says := range map[string]string{
		"hv1": "this very host", "HV1": "this very host", thisUUID: "this very host", strings.ToUpper(thisUUID): "this very host",
		"old-name": "this very host", "hv3": "u3 or u4", "": "virt-cow host list", " ": "virt-cow host list",
	} {
		b.run("host", "fenced", "--yes", "--alive", name).exits(exitUsage).says(says)
	}
	b.run("host", "fenced", "hv2").exits(exitUsage).says("no terminal to ask on", "--yes")
	b.run("host", "fenced").exits(exitUsage)
	if w := words(s); w != "" {
		t.Error(w)
	}
}

func TestHostFencedAsks(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	s := fencing(b, hosts(), report())
	for _, c := range []struct {
		typed string
		code  int
	}{{"hv2\n", 0}, {"yes\n", exitFailed}, {"y\n", exitFailed}, {"\n", exitFailed}, {"hv\n", exitFailed}, {"\x04", exitFailed}, {"\x03", exitFailed}} {
		term := b.onTerminal(120, 30, b.command(t.Context(), program, "host", "fenced", "hv2"))
		mark := term.shows(0, "nothing checks it")
		mark = term.shows(mark, "DESTROYED")
		mark = term.shows(mark, "It owns web1, web2.")
		mark = term.shows(mark, "Type hv2 to say so: ")
		if w := words(s); w != "" {
			t.Fatalf("before it was confirmed: %s", w)
		}
		term.types(c.typed)
		_ = term.cmd.Wait()
		want, said := "", "not confirmed: host hv2 is not taken for dead"
		if c.code == 0 {
			want, said = theWord, "is taken for dead"
		}
		term.shows(mark, said)
		if code := term.cmd.ProcessState.ExitCode(); code != c.code {
			t.Errorf("%q: exit code %d", c.typed, code)
		}
		if w := words(s); w != want {
			t.Errorf("%q: %s", c.typed, w)
		}
	}
}

func TestHostCompletion(t *testing.T) {
	t.Parallel()
	need(t, "fish")
	b := shellBench(t)
	fencing(b, hosts(), report())
	if err := os.MkdirAll(b.path("run"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.completesInFish("virt-cow host fenced hv", "hv2\thv2.example.com:16589")
}
