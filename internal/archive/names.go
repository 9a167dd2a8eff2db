package archive

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/kopia/kopia/snapshot"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// Names in a backup.
const (
	image        = ".img"         // behind the name of a disk
	manifestFile = "backup.json"  // what the maker of the backup says
	metaFile     = "archive.json" // what this package has to know
)

// Kopia's tags of our backups. `kopia snapshot list --tags domain:NAME` knows them without "tag:".
const (
	tagOurs   = "tag:virt-cow" // the version of archive.json
	tagDomain = "tag:domain"
	tagUUID   = "tag:uuid"
	tagHost   = "tag:host"
	tagJob    = "tag:job"
	tagGrade  = "tag:grade"
)

func (m Meta) tags() map[string]string {
	return map[string]string{
		tagOurs: "1", tagDomain: m.Domain, tagUUID: m.UUID, tagHost: m.Host, tagJob: m.Job, tagGrade: m.Grade,
	}
}

func metaOf(s *snapshot.Manifest) Meta {
	return Meta{
		Domain: s.Tags[tagDomain], UUID: s.Tags[tagUUID], Host: s.Tags[tagHost], Job: s.Tags[tagJob], Grade: s.Tags[tagGrade],
		Time: s.StartTime.ToTime().UTC(),
	}
}

// source is under what kopia lists a domain's backups: one line a domain, wherever it ran.
func (m Meta) source() snapshot.SourceInfo {
	return snapshot.SourceInfo{UserName: user, Host: "domains", Path: "/" + m.Domain}
}

// maxText bounds names in Meta, in bytes.
const maxText = 255

func (m Meta) check() error {
	for what, text := range map[string]string{"domain": m.Domain, "uuid": m.UUID, "host": m.Host, "job": m.Job, "grade": m.Grade} {
		if len(text) > maxText || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) || strings.Contains(text, "/") {
			return fmt.Errorf("%s %q can't be recorded", what, text)
		}
	}
	if m.Domain == "" || m.Job == "" || m.Time.IsZero() {
		return errors.New("domain, job or time is missing")
	}
	return nil
}

// checkName says what may be a file's or a disk's name.
func checkName(name string) error {
	odd := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-+@", r)
	}
	if name == "" || len(name) > 200 || name[0] == '.' || strings.ContainsFunc(name, odd) {
		return errors.New("not a good name: letters, digits and ._-+@ are")
	}
	return nil
}

func checkFile(name string) error {
	for part := range strings.SplitSeq(name, "/") {
		if err := checkName(part); err != nil {
			return err
		}
	}
	if dir := path.Dir(name); strings.Count(dir, "/") > 3 {
		return errors.New("too many folders")
	}
	return nil
}

// maxDisk bounds an image, in bytes.
const maxDisk = 64 << 40

func (g geometry) check() error {
	switch {
	case g.size <= 0 || g.size > maxDisk || g.size%blockdev.SectorSize != 0:
		return fmt.Errorf("a disk of %d bytes can't be", g.size)
	case g.piece != SmallPiece && g.piece != LargePiece:
		return fmt.Errorf("pieces have %d or %d bytes, not %d", SmallPiece, LargePiece, g.piece)
	}
	return nil
}
