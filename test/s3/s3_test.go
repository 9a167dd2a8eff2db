// Package s3 holds the archive against a real S3 server on this host, versitygw, which the test builds: it is killed in the middle of a
// backup, stays away, refuses.
package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/archive"
	"github.com/virt-cow/virt-cow/test/s3/gateway"
)

// server is a versitygw on a folder.
type server struct {
	t       *testing.T
	program string
	data    string
	address string
	process *exec.Cmd
}

func newServer(t *testing.T) *server {
	t.Helper()
	program, err := gateway.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, program: program, data: t.TempDir(), address: reserved(t)}
	t.Cleanup(s.kill)
	return s
}

// reserved is an address that nobody else gets while no server listens there: a socket is bound to it that never does.
func reserved(t *testing.T) string {
	t.Helper()
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(s) })
	err = errors.Join(unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(s, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	if err != nil {
		t.Fatal(err)
	}
	a, err := unix.Getsockname(s)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", a.(*unix.SockaddrInet4).Port)
}

// start starts it, and waits until it answers.
func (s *server) start() {
	s.t.Helper()
	s.process = exec.Command(s.program, "--port", s.address, "posix", s.data)
	s.process.Env = append(os.Environ(), gateway.Env...)
	if err := s.process.Start(); err != nil {
		s.t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		c, err := net.Dial("tcp", s.address)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			s.t.Fatal(err)
		}
	}
}

func (s *server) kill() {
	if s.process != nil {
		s.process.Process.Kill()
		s.process.Wait()
		s.process = nil
	}
}

func (s *server) bucket(name string) {
	s.t.Helper()
	c, err := minio.New(s.address, &minio.Options{Creds: credentials.NewStaticV4(gateway.KeyID, gateway.Secret, "")})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := c.MakeBucket(s.t.Context(), name, minio.MakeBucketOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) config() archive.Config {
	s.t.Helper()
	dir := s.t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
		return path
	}
	return archive.Config{
		URI:             "s3://backups/a/b?insecure=1&region=us-east-1&endpoint=" + s.address,
		PassphraseFile:  file("passphrase", "correct horse"),
		CredentialsFile: file("credentials", gateway.Credentials),
		Folder:          filepath.Join(dir, "node"),
		Log:             zerolog.New(zerolog.NewTestWriter(s.t)).Level(zerolog.InfoLevel),
	}
}

const piece = archive.SmallPiece

func image(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n*piece)
	if _, err := io.ReadFull(rand.NewChaCha8([32]byte{byte(n)}), b); err != nil {
		t.Fatal(err)
	}
	clear(b[piece : 2*piece])
	return b
}

func TestS3(t *testing.T) {
	s := newServer(t)
	s.start()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := s.config()
	if err := archive.Create(ctx, c); err == nil {
		t.Fatal("made without a bucket")
	}
	s.bucket("backups")
	if _, err := archive.Open(ctx, c); !errors.Is(err, archive.ErrNoRepository) {
		t.Fatalf("an empty bucket: %v", err)
	}
	if err := archive.Create(ctx, c); err != nil {
		t.Fatal(err)
	}
	if err := archive.Create(ctx, c); !errors.Is(err, archive.ErrExists) {
		t.Fatalf("made again: %v", err)
	}
	a, err := archive.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close(context.Background())

	// Killed while pieces are on their way; they wait for the next server.
	vda := image(t, 40)
	m := archive.Meta{Domain: "g1", Host: "hv1", Job: "7a0bb0a6-55a5-4a3e-8a0f-0a39a2b0d2c1", Time: time.Now()}
	w, err := a.Begin(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	d, err := w.Disk("vda", int64(len(vda)), piece)
	if err != nil {
		t.Fatal(err)
	}
	write := func(d *archive.DiskWriter, from, to int) {
		t.Helper()
		for p := from; p < to; p++ {
			if err := d.Write(ctx, p, vda[p*piece:][:piece]); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(d, 0, 15)
	s.kill()
	time.AfterFunc(3*time.Second, s.start)
	write(d, 15, 30)
	token, err := w.Checkpoint(ctx)
	if err != nil {
		t.Fatal(err)
	}

	// The writer is left as a killed process would leave it, and so is the server; another goes on.
	write(d, 30, 35)
	s.kill()
	s.start()
	b, err := archive.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(context.Background())
	if w, err = b.Resume(ctx, token); err != nil {
		t.Fatal(err)
	}
	if d, err = w.Disk("vda", int64(len(vda)), piece); err != nil {
		t.Fatal(err)
	}
	for p := range 40 {
		if d.Has(p) != (p < 30) {
			t.Fatalf("piece %d: %v", p, d.Has(p))
		}
	}
	write(d, 30, 40)
	id, err := w.Finish(ctx, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	dev, err := b.OpenDisk(ctx, id, "vda", archive.DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(vda))
	if _, err := dev.ReadAt(got, 0); err != nil || !bytes.Equal(got, vda) {
		t.Fatalf("not what was written: %v", err)
	}
	if _, err := b.Verify(ctx, id, nil); err != nil {
		t.Fatal(err)
	}

	// Refused, and away: said at once where nothing is under way.
	wrong := c
	wrong.CredentialsFile = filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(wrong.CredentialsFile, []byte("aws_access_key_id=tester\naws_secret_access_key=wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Open(ctx, wrong); !errors.Is(err, archive.ErrUnreachable) || strings.Contains(err.Error(), "wrong\n") {
		t.Errorf("wrong credentials: %v", err)
	}
	s.kill()
	if _, err := archive.Open(ctx, c); !errors.Is(err, archive.ErrUnreachable) || !strings.Contains(err.Error(), s.address) {
		t.Errorf("away: %v", err)
	}
}
