package peer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// dialTimeout is how long a host that is not there is dialled: what is asked of it may take far longer.
const dialTimeout = 5 * time.Second

// maxAnswer bounds an answer in bytes.
const maxAnswer = 4 << 20

// Client asks other hosts. It may be used by many at once.
type Client struct {
	Identity *Identity
	Timeout  time.Duration // of one question, with its answer; 0: none but the context's
}

// Call asks the host at an address, as ParseAddress has it: it POSTs in as JSON to a path, and decodes the answer into out,
// if not nil. Nothing is tried twice. The error is ErrUnreachable, ErrRefused, or an *api.RemoteError if the other host
// answered with one; its text says which host, what is wrong and what to look at.
func (c *Client) Call(ctx context.Context, address, path string, in, out any) error {
	host, hostPort, err := ParseAddress(address, DefaultPort)
	if err != nil {
		return err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	q := &question{caller: ctx, host: host, address: hostPort, began: time.Now()}
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
	}
	answer, err := c.ask(ctx, q, path, body)
	if err != nil {
		return err
	}
	if out == nil || len(answer) == 0 {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("host %s: its answer is not understood: %w", hostPort, err)
	}
	return nil
}

// ask makes a connection for one question: the other daemon may be another one the next time.
func (c *Client) ask(ctx context.Context, q *question, path string, body []byte) ([]byte, error) {
	certificates, err := c.Identity.certificates()
	if err != nil {
		return nil, q.fail(ErrRefused, err, "can't be asked: this host has no certificate to show: %v", err)
	}
	q.identity, q.certificates = c.Identity, certificates
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+q.address+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Close = true
	req.Header.Set("Content-Type", "application/json")

	raw, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", q.address)
	if err != nil {
		return nil, q.notDialled(err)
	}
	defer raw.Close()
	// One clock for all that follows.
	defer context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })()

	config := certificates.clientConfig(c.Identity.now, q.host)
	conn := tls.Client(raw, config)
	if err := conn.Handshake(); err != nil {
		return nil, q.notTrusted(err)
	}
	// The other side looks at our certificate only now: its refusal comes in place of an answer, and is read even if it
	// did not take the question.
	asking := req.Write(conn)
	limited := &io.LimitedReader{R: conn, N: maxAnswer + maxHeader}
	resp, err := http.ReadResponse(bufio.NewReader(limited), req)
	if err != nil {
		return nil, q.notAnswered(err, asking)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if limited.N <= 0 {
		return nil, fmt.Errorf("host %s: its answer has more than %d bytes", q.address, maxAnswer)
	}
	if err != nil {
		return nil, q.broken(err, "the connection ended in its answer")
	}
	if resp.StatusCode/100 != 2 {
		var e api.Error
		older := false
		if json.Unmarshal(answer, &e) != nil || e.Message == "" {
			older = resp.StatusCode == http.StatusNotFound // of a path that is known, it would say what is not found
			e.Message = fmt.Sprintf("%s: %.200q", resp.Status, bytes.TrimSpace(answer))
		}
		return nil, fmt.Errorf("host %s: %w", q.address, &api.RemoteError{Code: resp.StatusCode, Message: e.Message, Reason: e.Code, Older: older})
	}
	return answer, nil
}

// callError is what came of a question.
type callError struct {
	kind, cause error
	text        string
}

func (e *callError) Error() string   { return e.text }
func (e *callError) Unwrap() []error { return []error{e.kind, e.cause} }

// isTimeout says whether something ended because its time was up.
func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
