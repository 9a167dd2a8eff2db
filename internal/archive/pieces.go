package archive

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"
)

// The sizes that pieces may have, in bytes.
const (
	SmallPiece = 1 << 20
	LargePiece = 4 << 20
)

// compressor is kopia's name of what packs everything.
const compressor = "zstd-fastest"

// indexPrefix marks the contents that hold an index: kopia packs them apart from data.
const indexPrefix content.IDPrefix = "x"

// geometry says how an image is cut.
type geometry struct{ size, piece int64 }

// count is the number of pieces.
func (g geometry) count() int { return int((g.size + g.piece - 1) / g.piece) }

// length is that of piece i: the last one may be shorter.
func (g geometry) length(i int) int64 { return min(g.piece, g.size-int64(i)*g.piece) }

// put writes an object of at most 8 MiB in one.
func put(ctx context.Context, w repo.RepositoryWriter, what string, data []byte) (object.ID, error) {
	ow := w.NewObjectWriter(ctx, object.WriterOptions{Description: what, Compressor: compressor, MetadataCompressor: compressor, Splitter: "FIXED-8M"})
	defer ow.Close()
	if _, err := ow.Write(data); err != nil {
		return object.EmptyID, err
	}
	return ow.Result()
}

// entry is a line of an index: kopia's object.IndirectObjectEntry.
type entry struct {
	Start  int64  `json:"s,omitempty"`
	Length int64  `json:"l,omitempty"`
	Object string `json:"o"`
}

// stream is what kopia calls an index.
const stream = "kopia:indirect"

// compose writes the index of an object that consists of others, in their order, and returns that object. It is written as it
// is made: that of a large image takes no memory.
func compose(ctx context.Context, w repo.RepositoryWriter, what string, parts iter.Seq2[object.ID, int64]) (object.ID, error) {
	ow := w.NewObjectWriter(ctx, object.WriterOptions{Description: what, Prefix: indexPrefix, Compressor: compressor, MetadataCompressor: compressor})
	defer ow.Close()
	out := bufio.NewWriterSize(ow, 64<<10)
	fmt.Fprintf(out, `{"stream":%q,"entries":[`, stream)
	e, sep := entry{}, "\n"
	for id, length := range parts {
		e.Length, e.Object = length, id.String()
		line, err := json.Marshal(e)
		if err != nil {
			return object.EmptyID, err
		}
		out.WriteString(sep)
		out.Write(line)
		e.Start += length
		sep = ",\n"
	}
	out.WriteString("]}\n")
	if err := out.Flush(); err != nil { // a bufio.Writer keeps the first error
		return object.EmptyID, err
	}
	index, err := ow.Result()
	if err != nil {
		return object.EmptyID, err
	}
	return object.ParseID("I" + index.String())
}

// opener is what reading needs of a repository.
type opener interface {
	OpenObject(context.Context, object.ID) (object.Reader, error)
}

// decompose reads the index of a composed object and hands out its parts in order. What is not such an index is ErrDamaged.
func decompose(ctx context.Context, r opener, id object.ID, each func(id object.ID, length int64) error) error {
	index, ok := id.IndexObjectID()
	if !ok {
		return fmt.Errorf("%w: object %v has no index", ErrDamaged, id)
	}
	in, err := r.OpenObject(ctx, index)
	if err != nil {
		return fmt.Errorf("index of object %v: %w", id, err)
	}
	defer in.Close()
	if err := parseIndex(in, each); err != nil {
		return fmt.Errorf("index of object %v: %w", id, err)
	}
	return nil
}

// parseIndex reads an index line by line.
func parseIndex(in io.Reader, each func(id object.ID, length int64) error) error {
	d := json.NewDecoder(in)
	for _, want := range []json.Token{json.Delim('{'), "stream", stream, "entries", json.Delim('[')} {
		got, err := d.Token()
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("%w: %v in place of %v", ErrDamaged, got, want)
		}
	}
	end := int64(0)
	for d.More() {
		var e entry
		if err := d.Decode(&e); err != nil {
			return err
		}
		if e.Start != end || e.Length <= 0 {
			return fmt.Errorf("%w: an entry at %d of %d bytes after %d", ErrDamaged, e.Start, e.Length, end)
		}
		id, err := object.ParseID(e.Object)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if id == object.EmptyID {
			return fmt.Errorf("%w: an entry at %d names nothing", ErrDamaged, e.Start)
		}
		if end += e.Length; end < 0 {
			return fmt.Errorf("%w: an entry at %d of %d bytes", ErrDamaged, e.Start, e.Length)
		}
		if err := each(id, e.Length); err != nil {
			return err
		}
	}
	_, err := d.Token() // the closing bracket
	return err
}

// readTable reads an image's index into the names of its pieces.
func readTable(ctx context.Context, r opener, id object.ID, g geometry) ([]object.ID, error) {
	table := make([]object.ID, 0, g.count())
	err := decompose(ctx, r, id, func(id object.ID, length int64) error {
		if len(table) == g.count() || length != g.length(len(table)) {
			return fmt.Errorf("%w: piece %d has %d bytes", ErrDamaged, len(table), length)
		}
		table = append(table, id)
		return nil
	})
	if err == nil && len(table) != g.count() {
		err = fmt.Errorf("%w: %d of %d pieces", ErrDamaged, len(table), g.count())
	}
	return table, err
}

// readObject reads an object of a known length into p.
func readObject(ctx context.Context, r opener, id object.ID, p []byte) error {
	in, err := r.OpenObject(ctx, id)
	if err != nil {
		return err
	}
	defer in.Close()
	if in.Length() != int64(len(p)) {
		return fmt.Errorf("%w: object %v has %d bytes, not %d", ErrDamaged, id, in.Length(), len(p))
	}
	_, err = io.ReadFull(in, p)
	return err
}

// readSmall reads an object whole, if it has at most limit bytes.
func readSmall(ctx context.Context, r opener, id object.ID, limit int64) ([]byte, error) {
	in, err := r.OpenObject(ctx, id)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if in.Length() > limit {
		return nil, errors.New("too large")
	}
	return io.ReadAll(in)
}

// zeros is a run of them to compare with.
var zeros [64 << 10]byte

// isZero tells whether there is nothing but zeros.
func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
