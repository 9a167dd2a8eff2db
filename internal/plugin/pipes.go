package plugin

import (
	"os"
	"time"
)

// pipes are a plugin's three, each with its reading end first.
type pipes struct {
	stdin, stdout, stderr [2]*os.File
}

func newPipes() (*pipes, error) {
	p := &pipes{}
	for _, ends := range []*[2]*os.File{&p.stdin, &p.stdout, &p.stderr} {
		var err error
		if ends[0], ends[1], err = os.Pipe(); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

// closeTheirs closes the ends that the plugin has.
func (p *pipes) closeTheirs() {
	p.stdin[0].Close()
	p.stdout[1].Close()
	p.stderr[1].Close()
}

// deadline ends our reads and writes at t, whoever still has the other ends.
func (p *pipes) deadline(t time.Time) {
	p.stdin[1].SetWriteDeadline(t)
	p.stdout[0].SetReadDeadline(t)
	p.stderr[0].SetReadDeadline(t)
}

// close closes what is not closed yet; a nil file is none.
func (p *pipes) close() {
	for _, ends := range [][2]*os.File{p.stdin, p.stdout, p.stderr} {
		ends[0].Close()
		ends[1].Close()
	}
}
