package main

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
)

// On a terminal there is a bar in place, taken away at the end; elsewhere there are plain lines.
func TestProgressOnATerminal(t *testing.T) {
	t.Parallel()
	need(t, "script")
	b := newBench(t)
	if err := os.WriteFile(b.path("m.raw"), noise(1, 32*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	b.clone("c.vcow", "m.raw")
	s := &server{b: b, socket: b.path("s.sock"), done: make(chan struct{})}
	cmd := b.command(context.Background(), "script", "-qefc", "exec "+program+" serve --hydrate --rate 4M --socket s.sock c.vcow", "typescript")
	var out logBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	in, err := cmd.StdinPipe() // its end would be the terminal's
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(s.done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-s.done
		in.Close()
	})
	eventually(t, "a bar", func() bool { return strings.Count(out.String(), "hydrate c [") > 3 })
	text := out.String()
	if !strings.Contains(text, "\r\x1b[Khydrate c [") || !strings.Contains(text, "/s  ETA ") || strings.Contains(text, "]\r\n") {
		t.Errorf("shown: %q", text)
	}
	if err := syscall.Kill(s.status().PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-s.done
	if code := cmd.ProcessState.ExitCode(); code != 0 || !strings.HasSuffix(out.String(), " of 32 MiB in "+lastWord(out.String())+"\r\n") ||
		!strings.Contains(out.String(), "\r\x1b[Khydrate c: stopped, what was copied stays, ") {
		t.Errorf("exit code %d; the end: %q", code, out.String())
	}

	// Not a terminal: lines, and no control characters.
	p := b.serve("c.vcow", "--hydrate", "--rate", "4M")
	eventually(t, "a line", func() bool { return strings.Contains(p.log.String(), "hydrate c [") })
	zero := int64(0)
	r := apiRun(nil)
	r.Rate = &zero
	hydration(p, r)
	p.hydrated()
	eventually(t, "the outcome", func() bool {
		return strings.Contains(p.log.String(), "hydrate c: cut loose from its master, 32 MiB of 32 MiB in ")
	})
	if strings.ContainsAny(p.log.String(), "\r\x1b") {
		t.Errorf("not a terminal: %q", p.log.String())
	}
	p.stop()
}

func lastWord(s string) string {
	words := strings.Fields(s)
	return words[len(words)-1]
}
