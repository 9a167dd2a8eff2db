// Package gateway builds versitygw, a real S3 server that keeps buckets in a folder, for tests.
package gateway

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// versitygw is installed and not required by go.mod: its modules are no business of the product.
const versitygw = "github.com/versity/versitygw/cmd/versitygw@v1.0.14"

// The server is started with these in its environment, and as `PROGRAM --port ADDRESS posix FOLDER`: each folder there is a bucket.
const (
	KeyID  = "tester"
	Secret = "not-so-secret"
)

// Env is for the environment of the server.
var Env = []string{"ROOT_ACCESS_KEY=" + KeyID, "ROOT_SECRET_KEY=" + Secret}

// Credentials is a file of credentials for it, as AWS's tools have it.
const Credentials = "[default]\naws_access_key_id = " + KeyID + "\naws_secret_access_key = " + Secret + "\n"

// Build builds it into a folder.
func Build(ctx context.Context, dir string) (program string, err error) {
	install := exec.CommandContext(ctx, "go", "install", versitygw)
	install.Dir, install.Env = dir, append(os.Environ(), "GOBIN="+dir, "GOFLAGS=-mod=mod", "CGO_ENABLED=0")
	if out, err := install.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go install %s: %w\n%s", versitygw, err, out)
	}
	return filepath.Join(dir, "versitygw"), nil
}
