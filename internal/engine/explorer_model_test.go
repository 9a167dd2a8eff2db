package engine

import (
	"fmt"
	"slices"
	"sync"
)

// model is what each 512-byte sector of a window of the volume may hold. Sectors have one writer at a
// time, so the versions of one are in order.
type model struct {
	off, length int64 // of the window, bytes

	mu      sync.Mutex
	sectors []versions
}

// versions are the words of a sector that a power cut may leave: the one that is durable for sure, and
// every one issued after it.
type versions struct {
	first int      // the place of words[0] among all versions ever
	words []uint64 // never changed in place: a snapshot shares them
	acked int      // the place of the last acknowledged
}

func newModel(off, length int64, initial func(at int64) uint64) *model {
	m := &model{off: off, length: length, sectors: make([]versions, length/sector)}
	for i := range m.sectors {
		m.sectors[i].words = []uint64{initial(off/sector + int64(i))}
	}
	return m
}

// issue adds a version to a range; content tells its words.
func (m *model) issue(off, length int64, content func(at int64) uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for at := off; at < off+length; at += sector {
		s := &m.sectors[(at-m.off)/sector]
		s.words = append(s.words[:len(s.words):len(s.words)], content(at/sector))
	}
}

// ack says that the last version of a range was acknowledged, and if so is durable.
func (m *model) ack(off, length int64, durable bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for at := off; at < off+length; at += sector {
		s := &m.sectors[(at-m.off)/sector]
		s.acked = s.first + len(s.words) - 1
		if durable {
			s.settle(s.acked)
		}
	}
}

func (s *versions) settle(at int) {
	if at > s.first {
		s.words, s.first = s.words[at-s.first:], at
	}
}

// beginFlush notes what a flush that is called now makes durable.
func (m *model) beginFlush() []int {
	m.mu.Lock()
	defer m.mu.Unlock()
	marks := make([]int, len(m.sectors))
	for i := range m.sectors {
		marks[i] = m.sectors[i].acked
	}
	return marks
}

func (m *model) endFlush(marks []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.sectors {
		m.sectors[i].settle(marks[i])
	}
}

// snapshot is the words a power cut may leave now.
func (m *model) snapshot() [][]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([][]uint64, len(m.sectors))
	for i := range m.sectors {
		out[i] = m.sectors[i].words
	}
	return out
}

// allows checks what a power cut left in part of the window against snapshots from before and after it.
func (m *model) allows(p []byte, off int64, snapshots ...[][]uint64) error {
	for at := int64(0); at < int64(len(p)); at += sector {
		w, err := wordOf(p[at : at+sector])
		i := (off + at - m.off) / sector
		ok := false
		var all [][]uint64
		for _, s := range snapshots {
			ok = ok || slices.Contains(s[i], w)
			all = append(all, s[i])
		}
		if err != nil || !ok {
			return fmt.Errorf("sector %d holds %#x (%v), allowed are %#x", (off+at)/sector, w, err, all)
		}
	}
	return nil
}

// visible checks what is read from a live volume: the last acknowledged version or one issued since.
func (m *model) visible(p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for at := int64(0); at < int64(len(p)); at += sector {
		w, err := wordOf(p[at : at+sector])
		s := &m.sectors[(off+at-m.off)/sector]
		if want := s.words[s.acked-s.first:]; err != nil || !slices.Contains(want, w) {
			return fmt.Errorf("sector %d reads %#x (%v), want one of %#x", (off+at)/sector, w, err, want)
		}
	}
	return nil
}

// back says that the window is as a power cut left it that allowed what the snapshots say.
func (m *model) back(snapshots ...[][]uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.sectors {
		var words []uint64
		for _, s := range snapshots {
			words = append(words, s[i]...)
		}
		m.sectors[i] = versions{words: words, acked: len(words) - 1}
	}
}

// found takes over what the whole window was found to hold after a death. After a power cut it is also
// what is durable.
func (m *model) found(p []byte, durable bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.sectors {
		w, _ := wordOf(p[i*sector : (i+1)*sector])
		s := &m.sectors[i]
		if durable {
			*s = versions{words: []uint64{w}}
			continue
		}
		s.words = append(s.words[:len(s.words):len(s.words)], w)
		s.acked = s.first + len(s.words) - 1
	}
}
