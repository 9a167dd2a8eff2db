package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/format"
	"github.com/rs/zerolog"
)

// Config says where a repository is and how it is used.
type Config struct {
	// URI is a folder (/PATH or file:///PATH), s3://BUCKET/PREFIX?endpoint=HOST:PORT&region=…&insecure=1&ca=FILE&iam=1, or
	// kopia:///PATH, a configuration file that `kopia repository connect` has written.
	URI string
	// PassphraseFile holds the passphrase on its only line. Nobody but its owner may read it.
	PassphraseFile string
	// CredentialsFile is for S3, as AWS's tools have it; without it AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are looked at.
	CredentialsFile string
	// Folder is where caches and the lock of the maintenance are. Without it nothing is cached.
	Folder string
	// MetadataCache and DataCache are the limits of the caches in Folder, in bytes; 64 and 16 MiB unless set.
	MetadataCache, DataCache int64
	// Patience is how long a storage that does not answer is waited for before something fails; ten minutes unless set.
	Patience time.Duration
	// Waits, unless nil, is told for what is waited, and "" when that is over. It is called by several goroutines at once.
	Waits func(what string)
	// Host is the name of this host in the archive; the system's unless set.
	Host string
	Log  zerolog.Logger
}

// Sizes of caches, in bytes. Kopia can't do without one of data, though there is little use in it here.
const (
	defaultMetadataCache = 64 << 20
	defaultDataCache     = 16 << 20
)

// user is whom kopia shows as the one who made a backup.
const user = "virt-cow"

// read checks what is configured and reads the passphrase.
func (c *Config) read() (*place, string, error) {
	if c.Patience == 0 {
		c.Patience = defaultPatience
	}
	if c.MetadataCache == 0 {
		c.MetadataCache = defaultMetadataCache
	}
	if c.DataCache == 0 {
		c.DataCache = defaultDataCache
	}
	if c.Host == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, "", fmt.Errorf("archive %s: %w", c.URI, err)
		}
		c.Host = name
	}
	if c.Folder != "" && !filepath.IsAbs(c.Folder) {
		return nil, "", fmt.Errorf("archive %s: %s: the folder for caches must be an absolute path", c.URI, c.Folder)
	}
	register()
	pl, err := parsePlace(c)
	if err != nil {
		return nil, "", err
	}
	pass, err := passphrase(c.PassphraseFile)
	if err != nil {
		return nil, "", err
	}
	return pl, pass, nil
}

// connection writes the configuration file that kopia wants to open a repository, into a folder of its own. There are no secrets in
// it: the storage in it is only a number. Caches are of the repository with this identity: kopia takes its keys from there, and would take
// those of another one for them.
func (c *Config) connection(st *storage, id string, second bool) (dir, file string, err error) {
	under := ""
	lc := repo.LocalConfig{
		Storage:       &blob.ConnectionInfo{Type: handleType, Config: st.handle()},
		Caching:       &content.CachingOptions{},
		ClientOptions: repo.ClientOptions{Hostname: c.Host, Username: user, ReadOnly: second, FormatBlobCacheDuration: time.Hour},
	}
	if c.Folder != "" {
		under = filepath.Join(c.Folder, "run")
		if err := os.MkdirAll(under, 0o700); err != nil {
			return "", "", err
		}
		if !second {
			lc.Caching.CacheDirectory = filepath.Join(c.Folder, "cache", id)
			// Kopia keeps what is younger than ten minutes above the first of these limits, but not above the second.
			lc.Caching.ContentCacheSizeBytes, lc.Caching.ContentCacheSizeLimitBytes = c.DataCache, c.DataCache
			lc.Caching.MetadataCacheSizeBytes, lc.Caching.MetadataCacheSizeLimitBytes = c.MetadataCache, c.MetadataCache
			if err := os.MkdirAll(lc.Caching.CacheDirectory, 0o700); err != nil {
				return "", "", err
			}
			// Kopia would believe these for a quarter of an hour, and let the old passphrase in after a change and not the new one.
			for _, b := range []blob.ID{format.KopiaRepositoryBlobID, format.KopiaBlobCfgBlobID} {
				if err := os.Remove(filepath.Join(lc.Caching.CacheDirectory, string(b))); err != nil && !errors.Is(err, os.ErrNotExist) {
					return "", "", err
				}
			}
		}
	}
	if dir, err = os.MkdirTemp(under, "virt-cow-archive-"); err != nil {
		return "", "", err
	}
	b, err := json.Marshal(lc)
	file = filepath.Join(dir, "repository.config")
	if err = errors.Join(err, os.WriteFile(file, b, 0o600)); err != nil {
		return "", "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, file, nil
}
