// Command guest runs inside the lab's tiny guest. "guest agent TTY" carries out commands that come over a
// serial port; "guest write" and "guest verify" keep records on a disk, "guest check" reads them back all the time;
// "guest beat" says all the time that it can.
//
// The agent's protocol is one line a message, each with a marker and a JSON body: a wire.Request
// comes, a wire.Reply with its id goes back when the command has ended. Lines without it are passed
// over. Commands run side by side. A request that comes again, as its reply may be lost when the guest moves, is
// carried out once and answered each time.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/test/lab/wire"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: guest agent TTY | write DISK SLOTS NAME [SEED] | check DISK SLOTS NAME SEED [base] | verify DISK NAME | beat DISK")
	}
	switch {
	case args[0] == "agent" && len(args) == 2:
		return agent(args[1])
	case args[0] == "write" && (len(args) == 4 || len(args) == 5):
		return write(args[1], args[2], args[3], args[4:]...)
	case args[0] == "check" && (len(args) == 5 || len(args) == 6 && args[5] == "base"):
		return check(args[1], args[2], args[3], args[4], len(args) == 6)
	case args[0] == "verify" && len(args) == 3:
		return verify(args[1], args[2])
	case args[0] == "beat" && len(args) == 2:
		return beat(args[1])
	}
	return fmt.Errorf("can't %s", strings.Join(args, " "))
}

// replies is how many are kept for requests that come again.
const replies = 256

func agent(tty string) error {
	f, err := os.OpenFile(tty, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := makeRaw(int(f.Fd())); err != nil {
		return fmt.Errorf("%s: %w", tty, err)
	}
	var mu sync.Mutex // one whole line at a time
	done := map[uint64][]byte{}
	var order []uint64 // of what is done
	send := func(b []byte) { f.WriteString("\n" + wire.ReplyMarker + string(b) + "\n") }
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		_, body, ok := strings.Cut(line, wire.RequestMarker)
		var req wire.Request
		if !ok || json.Unmarshal([]byte(body), &req) != nil {
			continue
		}
		mu.Lock()
		reply, again := done[req.ID]
		if again && reply != nil {
			send(reply)
		}
		if !again {
			done[req.ID] = nil
			go func() {
				b, _ := json.Marshal(execute(req))
				mu.Lock()
				defer mu.Unlock()
				send(b)
				done[req.ID] = b
				if order = append(order, req.ID); len(order) > replies {
					delete(done, order[0])
					order = order[1:]
				}
			}()
		}
		mu.Unlock()
	}
}

// execute runs a command with its output in a file, so that what the command leaves in the background does
// not hold up the reply.
func execute(req wire.Request) wire.Reply {
	reply := wire.Reply{ID: req.ID, Code: 127}
	out, err := os.CreateTemp("/tmp", "out")
	if err != nil {
		reply.Output = err.Error()
		return reply
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := exec.Command("/bin/sh", "-c", req.Command)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		reply.Output = err.Error()
		return reply
	}
	reply.Code = cmd.ProcessState.ExitCode()
	b, err := os.ReadFile(out.Name())
	if err != nil {
		reply.Code, b = 127, []byte(err.Error())
	}
	reply.Output = string(b)
	return reply
}

func makeRaw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}
