package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/blob/filesystem"
	"github.com/kopia/kopia/repo/blob/s3"

	// Storages that only a configuration file of kopia's names.
	_ "github.com/kopia/kopia/repo/blob/rclone"
	_ "github.com/kopia/kopia/repo/blob/sftp"
	_ "github.com/kopia/kopia/repo/blob/webdav"
)

// place is where a repository is.
type place struct {
	info   blob.ConnectionInfo
	folder string // absolute path, if it is a folder
}

// parsePlace reads a URI.
func parsePlace(c *Config) (*place, error) {
	if strings.HasPrefix(c.URI, "/") {
		return folder(c.URI), nil
	}
	u, err := url.Parse(c.URI)
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	if u.User != nil {
		return nil, fmt.Errorf("archive %s: no names or passwords in the address: they go into a file", u.Redacted())
	}
	local := func() (string, error) {
		if u.Host != "" || !filepath.IsAbs(u.Path) || u.RawQuery != "" || u.Fragment != "" {
			return "", fmt.Errorf("archive %s: want %s:///PATH", c.URI, u.Scheme)
		}
		return u.Path, nil
	}
	switch u.Scheme {
	case "file":
		path, err := local()
		if err != nil {
			return nil, err
		}
		return folder(path), nil
	case "s3":
		return bucket(c, u)
	case "kopia":
		path, err := local()
		if err != nil {
			return nil, err
		}
		return connected(c, path)
	}
	return nil, fmt.Errorf("archive %s: want a folder, s3://BUCKET/PREFIX or kopia:///PATH (a configuration file of kopia's)", c.URI)
}

func folder(path string) *place {
	path = filepath.Clean(path)
	return &place{info: blob.ConnectionInfo{Type: "filesystem", Config: &filesystem.Options{Path: path}}, folder: path}
}

func bucket(c *Config, u *url.URL) (*place, error) {
	o := &s3.Options{BucketName: u.Host, Endpoint: "s3.amazonaws.com"}
	if o.BucketName == "" {
		return nil, fmt.Errorf("archive %s: want s3://BUCKET/PREFIX", c.URI)
	}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		o.Prefix = prefix + "/"
	}
	iam := false
	for name, values := range u.Query() {
		var err error
		switch value := values[len(values)-1]; name {
		case "endpoint":
			o.Endpoint = value
		case "region":
			o.Region = value
		case "insecure":
			o.DoNotUseTLS, err = strconv.ParseBool(value)
		case "iam":
			iam, err = strconv.ParseBool(value)
		case "ca":
			o.RootCA, err = os.ReadFile(value)
		default:
			err = errors.New("there are endpoint, region, insecure, ca and iam")
		}
		if err != nil {
			return nil, fmt.Errorf("archive %s: %s: %w", c.URI, name, err)
		}
	}
	switch {
	case c.CredentialsFile != "":
		k, err := credentials(c.CredentialsFile)
		if err != nil {
			return nil, fmt.Errorf("archive %s: %w", c.URI, err)
		}
		o.AccessKeyID, o.SecretAccessKey, o.SessionToken = k.id, k.secret, k.token
	case os.Getenv("AWS_ACCESS_KEY_ID") == "" && !iam:
		// kopia would ask the cloud's metadata service, which elsewhere means waiting for nobody.
		return nil, fmt.Errorf("archive %s: neither a credentials file nor AWS_ACCESS_KEY_ID; with iam=1 the cloud's metadata service is asked", c.URI)
	}
	return &place{info: blob.ConnectionInfo{Type: "s3", Config: o}}, nil
}

// connected reads the storage out of a configuration file of kopia's.
func connected(c *Config, path string) (*place, error) {
	b, err := secret(path)
	if err != nil {
		return nil, fmt.Errorf("archive %s: %w", c.URI, err)
	}
	var file struct {
		Storage *blob.ConnectionInfo `json:"storage"`
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, fmt.Errorf("archive %s: %w", c.URI, err)
	}
	if file.Storage == nil {
		return nil, fmt.Errorf("archive %s: no storage in it: a kopia server can't be used, only its storage", c.URI)
	}
	if o, ok := file.Storage.Config.(*filesystem.Options); ok {
		return &place{info: *file.Storage, folder: filepath.Clean(o.Path)}, nil
	}
	return &place{info: *file.Storage}, nil
}

// connect opens the storage. To create, a folder is made.
func (p *place) connect(ctx context.Context, c *Config, create bool) (*storage, error) {
	ctx = withLog(ctx, c.Log)
	s := &storage{uri: c.URI, folder: p.folder, patience: c.Patience, waits: c.Waits, log: c.Log}
	if create && p.folder != "" {
		if err := os.MkdirAll(p.folder, 0o700); err != nil {
			return nil, fmt.Errorf("archive %s: %w", c.URI, err)
		}
		if err := syncDir(filepath.Dir(p.folder)); err != nil {
			return nil, fmt.Errorf("archive %s: %w", c.URI, err)
		}
	}
	if p.folder != "" {
		switch st, err := os.Stat(p.folder); {
		case errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("archive %s: there is no such folder, so %w: make one with `virt-cow archive create`, or look whether it is mounted", c.URI, ErrNoRepository)
		case err == nil && !st.IsDir():
			return nil, fmt.Errorf("archive %s: %w: it is not a folder", c.URI, ErrUnreachable)
		}
		if _, err := os.Stat(s.repository()); !create && errors.Is(err, os.ErrNotExist) { // kopia would leave a file behind
			return nil, fmt.Errorf("archive %s: %w", c.URI, errNone)
		}
	}
	st, err := blob.NewStorage(ctx, p.info, create)
	if err != nil {
		return nil, fmt.Errorf("archive %s: %w: %w", c.URI, ErrUnreachable, err)
	}
	s.Storage = st
	return s, nil
}
