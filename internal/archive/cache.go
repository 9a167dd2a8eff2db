package archive

import (
	"slices"
	"sync"
)

// cacheBytes is about what a disk that is read keeps of its last pieces: a piece is opened whole, and read in requests of 64 KiB.
const cacheBytes = 16 << 20

// cache holds the last pieces that were read. A piece that several ask for at once is read once.
type cache struct {
	slots chan struct{} // one for each piece that is being read

	mu     sync.Mutex
	pieces map[int]*cached
	order  []int // the last used is last
	limit  int
}

type cached struct {
	done chan struct{}
	data []byte
	err  error
}

func (c *cache) init(limit int) {
	c.limit, c.pieces, c.slots = limit, map[int]*cached{}, make(chan struct{}, limit)
}

// get returns a piece, which is not to be written to. An error is not remembered.
func (c *cache) get(i int, read func() ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	p, ok := c.pieces[i]
	if !ok {
		p = &cached{done: make(chan struct{})}
		c.pieces[i] = p
	}
	if at := slices.Index(c.order, i); at >= 0 {
		c.order = slices.Delete(c.order, at, at+1)
	}
	c.order = append(c.order, i)
	if len(c.order) > c.limit {
		delete(c.pieces, c.order[0])
		c.order = slices.Delete(c.order, 0, 1)
	}
	c.mu.Unlock()
	if ok {
		<-p.done
		return p.data, p.err
	}
	c.slots <- struct{}{}
	p.data, p.err = read()
	<-c.slots
	if p.err != nil {
		c.mu.Lock()
		if c.pieces[i] == p {
			delete(c.pieces, i)
			c.order = slices.DeleteFunc(c.order, func(at int) bool { return at == i })
		}
		c.mu.Unlock()
	}
	close(p.done)
	return p.data, p.err
}
