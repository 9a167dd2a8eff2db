package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxSecret bounds a file with a secret, in bytes.
const maxSecret = 64 << 10

// secret reads a file that only its owner may read. One below $CREDENTIALS_DIRECTORY is systemd's and good as it is.
func secret(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO would wait for its writer
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a regular file", path)
	case st.Mode().Perm()&0o077 != 0 && !handed(path):
		return nil, fmt.Errorf("%s has mode %#o: others can read the secret in it; do `chmod 600 %s`, and change the secret", path, st.Mode().Perm(), path)
	case st.Size() > maxSecret:
		return nil, fmt.Errorf("%s: too large for a secret", path)
	}
	return io.ReadAll(io.LimitReader(f, maxSecret))
}

// handed tells whether systemd has handed the file over.
func handed(path string) bool {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	return dir != "" && filepath.Dir(filepath.Clean(path)) == filepath.Clean(dir)
}

func passphrase(path string) (string, error) {
	if path == "" {
		return "", errors.New("the archive needs a passphrase file")
	}
	b, err := secret(path)
	if err != nil {
		return "", fmt.Errorf("passphrase: %w", err)
	}
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	switch {
	case len(b) == 0:
		return "", fmt.Errorf("passphrase: %s is empty", path)
	case bytes.ContainsAny(b, "\n\x00"):
		return "", fmt.Errorf("passphrase: %s has more than one line", path)
	}
	return string(b), nil
}

// keys are what S3 knows its users by.
type keys struct{ id, secret, token string }

// credentials reads a file as AWS's tools have it; of its profiles the one named default.
func credentials(path string) (keys, error) {
	b, err := secret(path)
	if err != nil {
		return keys{}, fmt.Errorf("credentials: %w", err)
	}
	var k keys
	profile := "default"
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			profile = strings.TrimSpace(line[1 : len(line)-1])
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || profile != "default" {
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "aws_access_key_id":
			k.id = value
		case "aws_secret_access_key":
			k.secret = value
		case "aws_session_token":
			k.token = value
		}
	}
	if k.id == "" || k.secret == "" {
		return keys{}, fmt.Errorf("credentials: %s has no aws_access_key_id and aws_secret_access_key", path)
	}
	return k, nil
}
