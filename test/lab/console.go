package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/virt-cow/virt-cow/test/lab/wire"
)

// runTimeout bounds a command in the guest whose context has no deadline of its own.
const runTimeout = 3 * time.Minute

// errHungUp says that the serial line was lost: the guest ended.
var errHungUp = errors.New("the guest's serial line is closed")

// console is one connection to the agent.
type console struct {
	conn net.Conn

	mu      sync.Mutex
	waiting map[uint64]chan wire.Reply
	closed  bool
}

func dialConsole(path string) (*console, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	c := &console{conn: conn, waiting: map[uint64]chan wire.Reply{}}
	go c.read()
	return c, nil
}

// read hands replies to those who wait for them.
func (c *console) read() {
	r := bufio.NewReader(c.conn)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			break
		}
		_, body, ok := strings.Cut(line, wire.ReplyMarker)
		var reply wire.Reply
		if !ok || json.Unmarshal([]byte(body), &reply) != nil {
			continue
		}
		c.mu.Lock()
		if ch := c.waiting[reply.ID]; ch != nil {
			ch <- reply // has room for one, and gets one
			delete(c.waiting, reply.ID)
		}
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, ch := range c.waiting {
		close(ch)
	}
	c.waiting = nil
}

// call sends a request and waits for its reply. The same request may be sent again on another line.
func (c *console) call(ctx context.Context, r wire.Request) (wire.Reply, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return wire.Reply{}, errHungUp
	}
	ch := make(chan wire.Reply, 1)
	c.waiting[r.ID] = ch
	b, err := json.Marshal(r)
	if err == nil && len(b) > wire.MaxRequest {
		err = fmt.Errorf("command of %d bytes: at most %d", len(b), wire.MaxRequest)
	}
	if err == nil {
		_, err = c.conn.Write([]byte("\n" + wire.RequestMarker + string(b) + "\n"))
	}
	c.mu.Unlock()
	if err == nil {
		select {
		case reply, ok := <-ch:
			if !ok {
				return reply, errHungUp
			}
			return reply, nil
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	c.mu.Lock()
	delete(c.waiting, r.ID)
	c.mu.Unlock()
	return wire.Reply{}, err
}

// WaitUp connects to the guest's agent and waits for its first answer.
func (g *Guest) WaitUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, guestUp)
	defer cancel()
	g.hangUp()
	for began := time.Now(); ; {
		patience := 2 * time.Second
		if time.Since(began) > time.Minute { // the machine is that slow
			patience = 20 * time.Second
		}
		err := g.ping(ctx, patience)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("guest %s does not come up: %w\n%s", g.Name, err, g.ConsoleLog())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// ping sends one request. What is sent before the agent listens is lost, so it waits a while only.
func (g *Guest) ping(ctx context.Context, patience time.Duration) error {
	c, err := g.line()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err = c.call(ctx, g.request("true"))
	if errors.Is(err, errHungUp) {
		g.hangUp()
	}
	return err
}

func (g *Guest) request(command string) wire.Request {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nextID++
	return wire.Request{ID: g.nextID, Command: command}
}

// line is the connection to the agent, made if there is none.
func (g *Guest) line() (*console, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.console == nil {
		c, err := dialConsole(g.host.Path(g.serialPath()))
		if err != nil {
			return nil, err
		}
		g.console = c
	}
	return g.console, nil
}

func (g *Guest) hangUp() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.console != nil {
		g.console.conn.Close()
		g.console = nil
	}
}

// ExitError says that a command in the guest ended with a code other than 0.
type ExitError struct {
	Command, Output string
	Code            int
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("in the guest: %s: exit code %d: %s", e.Command, e.Code, strings.TrimSpace(e.Output))
}

// Run runs a shell command in the guest and returns what it printed. Several may run side by side, and while the guest
// moves. The error
// is an *ExitError if the command ended with a code other than 0.
func (g *Guest) Run(ctx context.Context, command string) (string, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, runTimeout)
		defer cancel()
	}
	reply, err := g.ask(ctx, g.request(command))
	if err != nil {
		return "", fmt.Errorf("guest %s: %s: %w", g.Name, command, err)
	}
	if reply.Code != 0 {
		return reply.Output, &ExitError{Command: command, Output: reply.Output, Code: reply.Code}
	}
	return reply.Output, nil
}

// ask sends a request and waits for its reply: on another line if the guest moves meanwhile. The agent carries a
// request out once, however often it comes.
func (g *Guest) ask(ctx context.Context, r wire.Request) (wire.Reply, error) {
	for {
		host := g.Host()
		c, err := g.line()
		var reply wire.Reply
		if err == nil {
			if reply, err = c.call(ctx, r); err == nil {
				return reply, nil
			}
		}
		g.mu.Lock()
		moving, moved := g.moving, g.host != host
		g.mu.Unlock()
		if moving != nil {
			select {
			case <-moving:
				continue
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil || !moved {
			return reply, err
		}
	}
}
