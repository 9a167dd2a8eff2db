package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/fs/localfs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob/filesystem"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/format"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/policy"
	"github.com/kopia/kopia/snapshot/upload"
)

// kopiaOf, in the environment, makes this program a kopia: it backs up the folder it names and ends.
const kopiaOf = "VIRT_COW_BENCH_KOPIA"

// kopiaBackup is kopia's own snapshot of a folder, into a repository that it makes in work, with the hash, cipher and compression of
// our archives.
func kopiaBackup(ctx context.Context, folder, work string) (err error) {
	place, config := filepath.Join(work, "repository"), filepath.Join(work, "config")
	if err := os.Mkdir(place, 0o700); err != nil {
		return err
	}
	st, err := filesystem.New(ctx, &filesystem.Options{Path: place}, true)
	if err != nil {
		return err
	}
	const pass = "a passphrase for a benchmark"
	options := &repo.NewRepositoryOptions{BlockFormat: format.ContentFormat{Hash: "BLAKE3-256-128", Encryption: "AES256-GCM-HMAC-SHA256"}}
	connect := &repo.ConnectOptions{CachingOptions: content.CachingOptions{CacheDirectory: filepath.Join(work, "cache")}}
	if err := errors.Join(repo.Initialize(ctx, st, options, pass), repo.Connect(ctx, config, st, pass, connect)); err != nil {
		return err
	}
	rep, err := repo.Open(ctx, config, pass, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rep.Close(ctx)) }()
	dir, err := localfs.Directory(folder)
	if err != nil {
		return err
	}
	source := snapshot.SourceInfo{Host: "bench", UserName: "bench", Path: "/disk"}
	return repo.WriteSession(ctx, rep, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) error {
		p := *policy.DefaultPolicy
		p.CompressionPolicy.CompressorName = "zstd-fastest"
		s, err := upload.NewUploader(w).Upload(ctx, fs.Entry(dir), policy.BuildTree(map[string]*policy.Policy{".": &p}, &p), source)
		if err == nil {
			_, err = snapshot.SaveSnapshot(ctx, w, s)
		}
		return err
	})
}
