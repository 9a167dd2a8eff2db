package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/test/lab"
	"github.com/virt-cow/virt-cow/test/s3/gateway"
)

// s3 is a rescue whose archive is on an S3 server, on the image node's own host.
type s3 struct {
	*rescue
	program, data string
	server        *lab.Process
}

const s3Address = "127.0.0.1:7070"

func newS3(t *testing.T) *s3 {
	t.Helper()
	s := &s3{rescue: newRescue(t, nil, 2, "v1", "v2")}
	s.data = filepath.Join(s.Dir, "s3") // which goes after the server
	must(t, os.MkdirAll(filepath.Join(s.data, "backups"), 0o755))
	var err error
	s.program, err = gateway.Build(t.Context(), s.Dir)
	must(t, err)
	s.startServer(t)
	must(t, os.WriteFile(s.node.Path("/etc/virt-cow/s3.credentials"), []byte(gateway.Credentials), 0o600))
	must(t, s.process.Stop(syscall.SIGTERM))
	s.configure(t, s.node.Host, `[image_node]
hosts = ["ha-ctl", "hb-ctl"]
[archive]
uri = "s3://backups/virt-cow?insecure=1&region=us-east-1&endpoint=`+s3Address+`"
passphrase_file = "/etc/virt-cow/archive.passphrase"
credentials_file = "/etc/virt-cow/s3.credentials"
cache = "/var/cache/virt-cow"
`)
	s.node.run(t, "archive", "create")
	s.startNode(t)
	return s
}

// startServer returns once it listens.
func (s *s3) startServer(t *testing.T) {
	t.Helper()
	var err error
	s.server, err = s.node.Start("env", append(gateway.Env, s.program, "--port", s3Address, "posix", s.data)...)
	must(t, err)
	eventually(t, "the S3 server listens", func() bool {
		_, err := s.node.Run(t.Context(), "bash", "-c", "</dev/tcp/"+strings.ReplaceAll(s3Address, ":", "/"))
		return err == nil
	})
}

// copies begins a backup that would take 12 s, and returns while it is copied.
func (s *s3) copies(t *testing.T) (job string, at beganAt) {
	t.Helper()
	at = s.begins(t)
	job = s.starts(t, 8<<20)
	s.copied(t, job, 0)
	return job, at
}

// TestBackupS3 backs a guest up to an S3 server that hangs for 30 s in the middle, and then to one that is killed and comes back.
func TestBackupS3(t *testing.T) {
	s := newS3(t)

	t.Log("== it hangs")
	job, at := s.copies(t)
	must(t, s.server.Signal(syscall.SIGSTOP))
	time.Sleep(30 * time.Second)
	if j := s.job(t, job); j.State != api.JobCopying {
		t.Errorf("the job does not wait: %+v", j)
	}
	s.writes(t, 20)
	must(t, s.server.Signal(syscall.SIGCONT))
	s.good(t, job, at, 1)

	t.Log("== it is killed")
	job, at = s.copies(t)
	must(t, s.server.Stop(syscall.SIGKILL))
	eventually(t, "the job says that it waits for the archive", func() bool {
		waits := s.job(t, job).Waits
		return strings.Contains(waits, s3Address) && strings.Contains(waits, "connection refused")
	})
	t.Log(s.job(t, job).Waits)
	s.writes(t, 20)
	s.startServer(t)
	s.good(t, job, at, 2)

	logs, err := s.stop(t)
	must(t, err)
	s.verifyAll(t, s.on(), logs)
}
