package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// maxFile bounds the file in bytes.
const maxFile = 1 << 20

// Effective is a configuration with where each of its values comes from.
type Effective struct {
	Config Config
	File   string // that was read, "" for none

	from     map[string]origin // by key; what is not there has its default
	problems []Problem
	unread   error // why the file could not be read at all
}

// origin is where a value comes from.
type origin struct {
	kind  string // file, env, flag
	where string
	line  int
}

// Load reads the file at path and then the environment. With an empty path it is the one that VIRT_COW_CONFIG names,
// or DefaultPath, which alone need not exist. What is wrong is all in one error, which wraps ErrInvalid.
func Load(path string) (Config, error) {
	e := Read(path, os.LookupEnv)
	return e.Config, e.Err()
}

// Read reads as Load does, but keeps what is wrong for Err and Problems. What can't be used has its default.
func Read(path string, env func(string) (string, bool)) *Effective {
	mayMiss := false
	if path == "" {
		if path, _ = env("VIRT_COW_CONFIG"); path == "" {
			path, mayMiss = DefaultPath, true
		}
	}
	e := newEffective()
	switch text, err := readFile(path); {
	case err == nil:
		e = Parse(text, path)
	case !mayMiss || !errors.Is(err, fs.ErrNotExist):
		e.unread = fmt.Errorf("%w: %w", ErrInvalid, err)
		e.problems = append(e.problems, Problem{Message: err.Error()})
	}
	e.environment(env)
	return e
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes, this is no configuration", path, maxFile)
	}
	return os.ReadFile(path)
}

func newEffective() *Effective { return &Effective{Config: Default(), from: map[string]origin{}} }

// Parse reads the text of a configuration file; name is for messages.
func Parse(text []byte, name string) *Effective {
	e := newEffective()
	e.File = name
	var tree map[string]any
	if err := toml.Unmarshal(text, &tree); err != nil {
		line, column, message := 0, 0, strings.TrimPrefix(err.Error(), "toml: ")
		var d *toml.DecodeError
		if errors.As(err, &d) {
			line, column = d.Position()
			message = fmt.Sprintf("column %d: %s", column, message)
		}
		e.problems = append(e.problems, Problem{Where: name, Line: line, Message: message})
		return e
	}
	e.fill(reflect.ValueOf(&e.Config).Elem(), tree, nil, lines(text))
	slices.SortFunc(e.problems, func(a, b Problem) int { return cmp.Or(cmp.Compare(a.Line, b.Line), strings.Compare(a.Key, b.Key)) })
	return e
}

// fill gives the fields of one table the values of the file.
func (e *Effective) fill(table reflect.Value, tree map[string]any, path []string, lines map[string]int) {
	fields := map[string]reflect.Value{}
	var known []string
	for i := range table.NumField() {
		name := table.Type().Field(i).Tag.Get("toml")
		fields[name], known = table.Field(i), append(known, name)
	}
	for name, value := range tree {
		at := append(slices.Clone(path), name)
		line := lines[join(at)]
		wrong := func(message string) {
			e.problems = append(e.problems, Problem{Where: e.File, Line: line, Key: readable(at), Message: message})
		}
		field, ok := fields[name]
		sub, isTable := value.(map[string]any)
		switch {
		case !ok:
			wrong(unknown(name, path, known))
		case field.Kind() == reflect.Struct && !isTable:
			wrong(fmt.Sprintf("is %s, but must be a table: write [%s] on a line of its own, and its keys below", kindOf(value), name))
		case field.Kind() == reflect.Struct:
			e.fill(field, sub, at, lines)
		default:
			if err := set(field, value); err != nil {
				wrong(err.Error())
				continue
			}
			e.from[strings.Join(at, ".")] = origin{"file", e.File, line}
		}
	}
}

func unknown(name string, table, known []string) string {
	if like := nearest(name, known); like != "" {
		return fmt.Sprintf("is not known; did you mean %s?", like)
	}
	for _, k := range Keys() { // in the wrong table
		if _, leaf, nested := strings.Cut(k.Name, "."); nested && leaf == name {
			return fmt.Sprintf("is not known here; did you mean %s?", k.Name)
		}
	}
	where := "at the top"
	if len(table) > 0 {
		where = "in [" + readable(table) + "]"
	}
	return fmt.Sprintf("is not known; %s there are: %s", where, strings.Join(known, ", "))
}

// environment lets the variables win over the file. An empty one is one that is not set.
func (e *Effective) environment(env func(string) (string, bool)) {
	for _, k := range Keys() {
		if text, _ := env(k.Env); text != "" {
			e.override(k.Name, text, origin{kind: "env", where: k.Env})
		}
	}
}

// Flag lets a command's flag win over file and environment. flag is its name, for messages.
func (e *Effective) Flag(key, text, flag string) {
	e.override(key, text, origin{kind: "flag", where: flag})
}

func (e *Effective) override(key, text string, from origin) {
	if err := setText(e.Config.field(key), text); err != nil {
		e.problems = append(e.problems, Problem{Where: from.where, Key: key, Message: err.Error()})
		return
	}
	e.from[key] = from
}

// From tells where a value comes from: default, or the file with its line, a variable, a flag.
func (e *Effective) From(key string) string {
	switch o := e.from[key]; o.kind {
	case "":
		return "default"
	case "file":
		return fmt.Sprintf("%s:%d", o.where, o.line)
	default:
		return o.kind + " " + o.where
	}
}

// Problems is all that is wrong with the values themselves. What is wrong with this host is CheckHost's.
func (e *Effective) Problems() []Problem {
	return append(slices.Clone(e.problems), e.located(e.Config.Validate())...)
}

// Err is nil unless there are problems that are more than warnings.
func (e *Effective) Err() error {
	if e.unread != nil {
		return e.unread
	}
	return failures(e.Problems())
}

// located adds to problems where their values come from.
func (e *Effective) located(problems []Problem) []Problem {
	for i, p := range problems {
		if o, ok := e.from[p.Key]; ok {
			problems[i].Where, problems[i].Line = o.where, o.line
		}
	}
	return problems
}

// lines finds the line of each key and table of a text that parses.
func lines(text []byte) map[string]int {
	found := map[string]int{}
	var p unstable.Parser
	p.Reset(text)
	var table []string
	for p.NextExpression() {
		n := p.Expression()
		switch n.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = nil
			note(&p, n.Key(), &table, found)
		case unstable.KeyValue:
			noteValue(&p, n, table, found)
		}
	}
	return found
}

func noteValue(p *unstable.Parser, n *unstable.Node, table []string, found map[string]int) {
	at := slices.Clone(table)
	note(p, n.Key(), &at, found)
	if v := n.Value(); v.Kind == unstable.InlineTable {
		for it := v.Children(); it.Next(); {
			noteValue(p, it.Node(), at, found)
		}
	}
}

// note adds the parts of a key to at, and the line of each.
func note(p *unstable.Parser, key unstable.Iterator, at *[]string, found map[string]int) {
	for key.Next() {
		n := key.Node()
		*at = append(*at, string(n.Data))
		if k := join(*at); found[k] == 0 {
			found[k] = p.Shape(n.Raw).Start.Line
		}
	}
}

func join(path []string) string { return strings.Join(path, "\x00") }

// readable is a key as one would write it.
func readable(path []string) string {
	parts := make([]string, len(path))
	for i, p := range path {
		if parts[i] = p; p == "" || strings.ContainsFunc(p, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-')
		}) {
			parts[i] = strconv.Quote(p)
		}
	}
	return strings.Join(parts, ".")
}
