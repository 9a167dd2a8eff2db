package archive

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
)

// template is an empty repository that tests copy: making one takes the better part of a second.
var template = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "virt-cow-archive-test-")
	if err != nil {
		return "", err
	}
	c := Config{URI: filepath.Join(dir, "repository"), PassphraseFile: filepath.Join(dir, "passphrase"), Host: "node1", Log: zerolog.Nop()}
	if err := os.WriteFile(c.PassphraseFile, []byte("correct horse\n"), 0o600); err != nil {
		return "", err
	}
	return dir, Create(context.Background(), c)
})

func TestMain(m *testing.M) {
	if dir := os.Getenv(openedDir); dir != "" {
		openAtOnce(dir)
		os.Exit(0)
	}
	code := m.Run()
	if dir, err := template(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// fresh is the configuration of an empty repository of the test's own.
func fresh(t testing.TB) Config {
	t.Helper()
	from, err := template()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := exec.Command("cp", "-a", from+"/.", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return Config{
		URI: filepath.Join(dir, "repository"), PassphraseFile: filepath.Join(dir, "passphrase"), Folder: filepath.Join(dir, "node"),
		Host: "node1", Patience: 20 * time.Second, Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.InfoLevel),
	}
}

// open opens a repository until the end of the test.
func open(t testing.TB, c Config) *Archive {
	t.Helper()
	a, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(context.Background()) })
	return a
}

func meta(domain string) Meta {
	return Meta{Domain: domain, UUID: uuid.NewString(), Host: "hv1", Job: uuid.NewString(), Grade: "fs", Time: time.Now().UTC().Truncate(time.Millisecond)}
}

// pieces is an image: for each letter a piece, random by the letter, or zeros for a dot; the last one is short.
func pieces(letters string, piece int64, last int64) []byte {
	var b bytes.Buffer
	all := []rune(letters)
	for i, l := range all {
		n := piece
		if i == len(all)-1 {
			n = last
		}
		if l == '.' {
			b.Write(make([]byte, n))
			continue
		}
		rnd := rand.NewChaCha8([32]byte{byte(l), byte(l >> 8)})
		io.CopyN(&b, rnd, n)
	}
	return b.Bytes()
}

// writeDisk writes what is not there yet of a disk, from several goroutines.
func writeDisk(t testing.TB, d *DiskWriter, image []byte) {
	t.Helper()
	var all sync.WaitGroup
	for g := range 3 {
		all.Go(func() {
			for i := g; i < d.Pieces(); i += 3 {
				if d.Has(i) {
					continue
				}
				at := int64(i) * d.piece
				if err := d.Write(t.Context(), i, image[at:at+d.Length(i)]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

func begin(t testing.TB, a *Archive, m Meta) *Writer {
	t.Helper()
	w, err := a.Begin(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func disk(t testing.TB, w *Writer, name string, image []byte, piece int64) *DiskWriter {
	t.Helper()
	d, err := w.Disk(name, int64(len(image)), piece)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func finish(t testing.TB, w *Writer) string {
	t.Helper()
	id, err := w.Finish(t.Context(), []byte(`{"version":1}`))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// backup makes a whole backup of one disk.
func backup(t testing.TB, a *Archive, m Meta, image []byte, piece int64) string {
	t.Helper()
	w := begin(t, a, m)
	writeDisk(t, disk(t, w, "vda", image, piece), image)
	return finish(t, w)
}

// read reads a disk whole, in odd requests.
func read(t testing.TB, a *Archive, id, name string) []byte {
	t.Helper()
	dev, err := a.OpenDisk(t.Context(), id, name, DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	b := make([]byte, dev.Info().Size)
	for at := 0; at < len(b); {
		n := min(len(b)-at, 512*777)
		if _, err := dev.ReadAt(b[at:at+n], int64(at)); err != nil {
			t.Fatal(err)
		}
		at += n
	}
	return b
}

// same fails unless a disk of a backup is this image.
func same(t testing.TB, a *Archive, id, name string, image []byte) {
	t.Helper()
	if got := read(t, a, id, name); !bytes.Equal(got, image) {
		t.Fatalf("disk %s of backup %s is not what was written", name, id)
	}
}

// blobs are the files of a repository with a prefix: p packs of data, q of the rest.
func blobs(t testing.TB, c Config, prefix string) []string {
	t.Helper()
	var out []string
	err := filepath.Walk(filepath.Join(c.URI, prefix), func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
