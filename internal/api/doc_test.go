package api

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// TestDocumented makes sure that docs/API.md has every path, every type and every field, and the states.
func TestDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/API.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for i, id := range n.Names {
					prefix := strings.HasPrefix(id.Name, "Path") || strings.HasPrefix(id.Name, "State") || strings.HasPrefix(id.Name, "Volume") || strings.HasPrefix(id.Name, "Hydration")
					if lit, ok := ast.Node(valueOf(n, i)).(*ast.BasicLit); ok && prefix {
						found++
						if v, err := strconv.Unquote(lit.Value); err != nil || !strings.Contains(doc, "`"+v+"`") {
							t.Errorf("docs/API.md lacks %s, %s", id.Name, lit.Value)
						}
					}
				}
			case *ast.TypeSpec:
				s, ok := n.Type.(*ast.StructType)
				if !ok || !n.Name.IsExported() || !hasJSON(s) {
					return true
				}
				_, section, is := strings.Cut(doc, "\n### "+n.Name.Name+"\n")
				if !is {
					t.Errorf("docs/API.md has no section %s", n.Name.Name)
					return true
				}
				section, _, _ = strings.Cut(section, "\n### ")
				for _, field := range s.Fields.List {
					if field.Tag == nil {
						continue
					}
					tag, _, _ := strings.Cut(reflect.StructTag(strings.Trim(field.Tag.Value, "`")).Get("json"), ",")
					found++
					if !strings.Contains(section, "`"+tag+"`") {
						t.Errorf("docs/API.md, %s: no field %s", n.Name.Name, tag)
					}
				}
			}
			return true
		})
	}
	if found < 100 {
		t.Errorf("only %d things were looked for", found)
	}
}

func valueOf(s *ast.ValueSpec, i int) ast.Expr {
	if i < len(s.Values) {
		return s.Values[i]
	}
	return nil
}

func hasJSON(s *ast.StructType) bool {
	for _, f := range s.Fields.List {
		if f.Tag != nil && strings.Contains(f.Tag.Value, `json:"`) {
			return true
		}
	}
	return false
}
