package main

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// named is a command in a message or a page: its words until the first that is not one's.
var named = regexp.MustCompile("`virt-cow ((?:[a-z][a-z-]* ?)+)")

// TestNamedCommands: messages and pages name no command that is none.
func TestNamedCommands(t *testing.T) {
	t.Parallel()
	var c cli
	app := newParser(&c, io.Discard, io.Discard, func(int) {}).Model
	files := []string{"../../README.md", "../../ARCHITECTURE.md"}
	for _, dir := range []string{"../../cmd", "../../internal", "../../docs"} {
		if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(path, ".md") || strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				files = append(files, path)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	seen := 0
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			seen++
			node := app.Node
			for _, word := range strings.Fields(m[1]) {
				if len(node.Children) == 0 {
					break
				}
				next := childNamed(node, word)
				if next == nil {
					t.Errorf("%s: `virt-cow %s`: there is no such command", path, m[1])
					break
				}
				node = next
			}
		}
	}
	if seen < 100 {
		t.Errorf("%d commands were found", seen)
	}
}

func childNamed(n *kong.Node, name string) *kong.Node {
	for _, child := range n.Children {
		if child.Name == name {
			return child
		}
	}
	return nil
}
