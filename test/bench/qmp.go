package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// qmp is a connection to QEMU's monitor.
type qmp struct {
	conn net.Conn
	in   *json.Decoder
}

// qmpTimeout bounds one command.
const qmpTimeout = time.Minute

func dialQMP(socket string) (*qmp, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	q := &qmp{conn, json.NewDecoder(conn)}
	if err := q.run("qmp_capabilities", nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return q, nil
}

func (q *qmp) close() error { return q.conn.Close() }

func (q *qmp) run(command string, arguments map[string]any) error {
	_, err := q.ask(command, arguments)
	return err
}

// ask runs a command and returns its answer; events are passed over.
func (q *qmp) ask(command string, arguments map[string]any) (json.RawMessage, error) {
	if err := q.conn.SetDeadline(time.Now().Add(qmpTimeout)); err != nil {
		return nil, err
	}
	if arguments == nil {
		arguments = map[string]any{}
	}
	if err := json.NewEncoder(q.conn).Encode(map[string]any{"execute": command, "arguments": arguments}); err != nil {
		return nil, err
	}
	for {
		var answer struct {
			Return json.RawMessage `json:"return"`
			Error  *struct{ Desc string }
		}
		if err := q.in.Decode(&answer); err != nil {
			return nil, fmt.Errorf("QMP %s: %w", command, err)
		}
		switch {
		case answer.Error != nil:
			return nil, fmt.Errorf("QMP %s: %s", command, answer.Error.Desc)
		case answer.Return != nil:
			return answer.Return, nil
		}
	}
}

// jobless waits until no block job is left.
func (q *qmp) jobless() error {
	for until := time.Now().Add(qmpTimeout); time.Now().Before(until); time.Sleep(time.Millisecond) {
		jobs, err := q.ask("query-block-jobs", nil)
		if err != nil || string(jobs) == "[]" {
			return err
		}
	}
	return errors.New("QMP: a block job does not end")
}
