package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxPath bounds the path of a store, in bytes.
const maxPath = 4095

// answer is what a provider writes on stdout.
type answer struct {
	Path    string `json:"path"`    // create, resolve: absolute
	Size    int64  `json:"size"`    // create, resolve: bytes
	Missing bool   `json:"missing"` // resolve: there is none of this name

	Kind        string `json:"kind"`   // capabilities: provider
	Schema      int    `json:"schema"` // capabilities: the newest it knows
	Description string `json:"description"`
}

// Capabilities is what a provider says of itself.
type Capabilities struct {
	Schema      int    `json:"schema"` // of the documents it reads, the newest it knows
	Description string `json:"description,omitempty"`
}

// kernelNames are the names of disks that are another disk's after the next boot.
var kernelNames = regexp.MustCompile(`^/dev/(sd[a-z]+|hd[a-z]+|vd[a-z]+|xvd[a-z]+|dm-|nvme[0-9]+n|mmcblk)[0-9p]*$`)

// parseAnswer reads one JSON object and nothing behind it. What it does not know in it it ignores.
func parseAnswer(b []byte) (*answer, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("the answer is not UTF-8")
	}
	if b = bytes.TrimSpace(b); len(b) == 0 || b[0] != '{' {
		return nil, errors.New("the answer is not a JSON object")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	var a answer
	if err := d.Decode(&a); err != nil {
		return nil, fmt.Errorf("the answer is not what it should be: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something behind the answer")
	}
	if a.Size < 0 {
		return nil, fmt.Errorf("a size of %d bytes", a.Size)
	}
	return &a, nil
}

// checkPath wants the stable name of a file or device.
func checkPath(path string) error {
	switch {
	case path == "":
		return errors.New("the answer has no path")
	case len(path) > maxPath || strings.ContainsFunc(path, func(c rune) bool { return !unicode.IsPrint(c) }):
		return fmt.Errorf("%.80q is no path", path)
	case !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/":
		return fmt.Errorf("%q is not an absolute path in its shortest form", path)
	case kernelNames.MatchString(path):
		return fmt.Errorf("%s may be another disk after the next boot: give a name of /dev/disk/by-id or /dev/mapper", path)
	}
	return nil
}
