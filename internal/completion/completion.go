// Package completion completes command lines from the model that also parses them: commands, flags, values of enums,
// and names that the program can ask for. The shells' scripts are in scripts.go; they call the program for each key.
//
// Not github.com/jotaen/kong-completion: it was tried, and it knows no descriptions, no paths and nothing of words with
// a blank in them, while it needs five more modules.
package completion

import (
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Tag is the tag of a flag or argument whose values are names that Names knows, complete:"volume", or complete:"file".
const Tag = "complete"

// Candidate is one way to go on.
type Candidate struct {
	Word string // whole, with what was typed of it
	Help string
}

// Paths says what of the file system goes on too.
type Paths string

// The values of Paths.
const (
	NoPaths Paths = "words"
	Files   Paths = "files"
	Folders Paths = "folders"
)

// Names finds the names of one kind. flags are the values of the flags typed so far, by their names.
type Names func(kind string, flags map[string]string) []Candidate

// Complete finds what may stand for the last word, which may be empty, after those before it. The program's own name
// is not among words.
func Complete(app *kong.Application, words []string, names Names) ([]Candidate, Paths) {
	if len(words) == 0 {
		words = []string{""}
	}
	l := line{node: app.Node, names: names, flags: map[string]string{}}
	last := words[len(words)-1]
	for _, w := range words[:len(words)-1] {
		l.take(w)
	}
	found, paths := l.complete(last)
	found = slices.DeleteFunc(found, func(c Candidate) bool { return !strings.HasPrefix(c.Word, last) })
	return found, paths
}

// line is what is understood of the words so far.
type line struct {
	node    *kong.Node
	names   Names
	flags   map[string]string
	pending *kong.Flag // whose value is the next word
	taken   int        // positional arguments of node
	plain   bool       // after --
}

func (l *line) take(word string) {
	switch {
	case l.pending != nil:
		l.flags[l.pending.Name], l.pending = word, nil
	case l.plain:
		l.taken++
	case word == "--":
		l.plain = true
	case strings.HasPrefix(word, "-") && word != "-":
		name, value, has := strings.Cut(word, "=")
		f := l.flag(name)
		switch {
		case f == nil:
		case has:
			l.flags[f.Name] = value
		case f.IsBool() || f.IsCounter():
			l.flags[f.Name] = "true"
		default:
			l.pending = f
		}
	default:
		for _, child := range l.node.Children {
			if child.Name == word || slices.Contains(child.Aliases, word) {
				l.node, l.taken = child, 0
				return
			}
		}
		l.taken++
	}
}

// flag finds a flag, with its dashes, of the command or those above it.
func (l *line) flag(dashed string) *kong.Flag {
	for n := l.node; n != nil; n = n.Parent {
		for _, f := range n.Flags {
			if "--"+f.Name == dashed || f.Short != 0 && "-"+string(f.Short) == dashed {
				return f
			}
		}
	}
	return nil
}

func (l *line) complete(word string) ([]Candidate, Paths) {
	if l.pending != nil {
		return l.values(l.pending.Value, "")
	}
	if name, _, has := strings.Cut(word, "="); has && strings.HasPrefix(word, "-") && !l.plain {
		if f := l.flag(name); f != nil {
			return l.values(f.Value, name+"=")
		}
		return nil, NoPaths
	}
	if strings.HasPrefix(word, "-") && !l.plain {
		return l.flagNames(), NoPaths
	}
	var found []Candidate
	for _, child := range l.node.Children {
		if !child.Hidden && !l.plain {
			found = append(found, Candidate{child.Name, child.Help})
		}
	}
	if len(found) > 0 {
		return found, NoPaths
	}
	if l.taken < len(l.node.Positional) {
		return l.values(l.node.Positional[l.taken], "")
	}
	if n := len(l.node.Positional); n > 0 && l.node.Positional[n-1].IsCumulative() {
		return l.values(l.node.Positional[n-1], "")
	}
	if l.plain {
		return nil, NoPaths
	}
	return l.flagNames(), NoPaths
}

func (l *line) flagNames() []Candidate {
	var found []Candidate
	for n := l.node; n != nil; n = n.Parent {
		for _, f := range n.Flags {
			if _, used := l.flags[f.Name]; !f.Hidden && (!used || f.IsCumulative()) {
				found = append(found, Candidate{"--" + f.Name, f.Help})
			}
		}
	}
	return found
}

// values are those of a flag or argument, behind a prefix that belongs to the same word.
func (l *line) values(v *kong.Value, prefix string) ([]Candidate, Paths) {
	var found []Candidate
	if v.Enum != "" {
		for one := range strings.SplitSeq(v.Enum, ",") {
			if one = strings.TrimSpace(one); one != "" {
				found = append(found, Candidate{prefix + one, ""})
			}
		}
		return found, NoPaths
	}
	if kind := v.Tag.Get(Tag); kind != "" && kind != "file" && l.names != nil {
		for _, c := range l.names(kind, l.flags) {
			found = append(found, Candidate{prefix + c.Word, c.Help})
		}
		return found, NoPaths
	}
	switch {
	case v.Tag.Get(Tag) == "file", v.Tag.Type == "path", v.Tag.Type == "existingfile", v.Tag.Type == "filecontent":
		return nil, Files
	case v.Tag.Type == "existingdir":
		return nil, Folders
	}
	return nil, NoPaths
}
