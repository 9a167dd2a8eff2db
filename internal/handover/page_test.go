package handover

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

var actionNames = map[Action]string{
	DoGrant:    "hydration and cache off, commit; slot `OPEN`; header: the grant",
	DoSeal:     "hold writes, drain, flush; slot `SEALED`",
	DoReclaim:  "slot `RECLAIM`",
	DoYield:    "slot `YIELD`",
	DoReopen:   "slot `OPEN`; let go what is held",
	DoKeep:     "slot `KEPT`; let go what is held",
	DoEndGrant: "header: no grant; read the receiver's slot; it has let go: slot free, cache on; else the grant is put back",
	DoHandOver: "header: the receiver owns it, epoch + 1; fail what is held",
	DoActivate: "slot `ACTIVE`",
	DoWrite:    "let go what is held",
	DoOwn:      "header: this engine; load the table, cache and hydration on; slot free",
	DoTakeOver: "forced takeover into the other table area; then the same",
	DoClose:    "slot free; read the header: named in it after all: own it and release it",
	DoRelease:  "clean close: no owner",
	DoLeave:    "close, write nothing",
}

func page(table []Rule) string {
	var b strings.Builder
	b.WriteString("| state | when | does | then |\n|---|---|---|---|\n")
	for _, r := range table {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.State, r.Event, actionNames[r.Do], r.Next)
	}
	return b.String()
}

// TestPage holds docs/MIGRATION.md to the tables.
func TestPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/MIGRATION.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, table := range map[string][]Rule{"Giver": Giver, "Receiver": Receiver} {
		if want := page(table); !strings.Contains(string(text), want) {
			t.Errorf("docs/MIGRATION.md does not have the table %s, which is:\n%s", name, want)
		}
	}
}

// TestStates: every state and rule has its words, and each rule leads somewhere the table knows.
func TestStates(t *testing.T) {
	for _, table := range [][]Rule{Giver, Receiver} {
		for _, r := range table {
			if r.State.String() == "" || r.Next.String() == "" || r.Event == "" || actionNames[r.Do] == "" {
				t.Errorf("rule %+v lacks a name", r)
			}
		}
	}
}
