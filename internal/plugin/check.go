package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/google/uuid"
)

// The kinds of plugins.
const (
	KindEvent    = "event"
	KindProvider = "provider"
)

// Result is one thing that Check tried.
type Result struct {
	What   string `json:"what"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// CheckConfig says how a plugin is checked.
type CheckConfig struct {
	Config              // Dir is not used
	Kind   string       // Kind…; "": a provider if it says that it is one
	Size   int64        // bytes, of the store that a provider is to make; 0: 16 MiB
	Report func(Result) // called after each thing tried
}

// checker exercises one plugin.
type checker struct {
	runner *Runner
	entry  Entry
	config CheckConfig
	failed bool
}

// Check exercises the plugin at an absolute path as the daemon would run it, for real: an event plugin is told of
// events that did not happen, of a volume named plugin-check-…, and a provider makes and deletes a store of such a name.
// It returns the plugin's kind and whether all was well; an error says that it could not be tried at all.
func Check(ctx context.Context, path string, c CheckConfig) (kind string, ok bool, err error) {
	if c.Size <= 0 {
		c.Size = 16 << 20
	}
	c.Dir = filepath.Dir(path)
	r := New(c.Config)
	defer r.Close(ctx)
	k := &checker{runner: r, entry: examine(path), config: c}
	if errors.Is(k.entry.Err, fs.ErrNotExist) {
		return "", false, k.entry.Err
	}
	k.report("may be run: root's own, an executable, a valid name", k.entry.Err, k.entry.Path)
	if k.entry.Err != nil {
		return "", false, nil
	}
	if kind = c.Kind; kind == "" {
		kind = k.kind(ctx)
	}
	if kind == KindProvider {
		k.provider(ctx)
	} else {
		k.events(ctx)
	}
	if err := ctx.Err(); err != nil {
		return kind, false, context.Cause(ctx)
	}
	return kind, !k.failed, nil
}

// kind asks the plugin. One for events knows no such event and does nothing.
func (k *checker) kind(ctx context.Context) string {
	out, _, err := k.call(ctx, OperationCapabilities, k.document(Event{Event: OperationCapabilities}, nil), 0)
	if err == nil {
		if a, err := parseAnswer(out); err == nil && a.Kind == KindProvider {
			return KindProvider
		}
	}
	return KindEvent
}

func (k *checker) report(what string, err error, detail string) {
	if err != nil {
		k.failed, detail = true, err.Error()
	}
	k.config.Report(Result{What: what, OK: err == nil, Detail: detail})
}

// call runs the plugin once with any document. It returns what it wrote on stdout and its last line on stderr.
// A timeout of 0 is that of the plugin's kind.
func (k *checker) call(ctx context.Context, event string, doc []byte, timeout time.Duration) ([]byte, string, error) {
	if timeout == 0 {
		timeout = k.runner.config.Timeout
	}
	var stdout bytes.Buffer
	stderr := k.runner.logLines(k.entry, event, "stderr")
	c := call{
		plugin: k.entry, event: event, stdin: doc, timeout: timeout,
		stdout: output{&stdout, maxOutput}, stderr: output{stderr, maxOutput},
	}
	err := c.run(ctx)
	k.runner.endLines(k.entry, event, stderr)
	return stdout.Bytes(), stderr.last, err
}

func (k *checker) document(e Event, s *store) []byte {
	b, err := k.runner.encode(e, s)
	if err != nil { // no random numbers
		panic(err)
	}
	return b
}

// future is a document as a later version may send it.
func (k *checker) future(e Event, s *store) []byte {
	var fields map[string]any
	if err := json.Unmarshal(k.document(e, s), &fields); err != nil {
		panic(err) // it was made here
	}
	fields["schema"] = 99
	fields["later"] = map[string]any{"a": []int{1, 2}, "b": nil, "text": "\"quoted\" \u00e9 \u0001"}
	for _, part := range []string{"volume", "store"} {
		if object, ok := fields[part].(map[string]any); ok {
			object["later"] = true
		}
	}
	b, err := json.MarshalIndent(fields, "", "  ")
	if err != nil {
		panic(err)
	}
	return b
}

// garbage is what no version sends.
var garbage = map[string][]byte{
	"nothing on stdin":      nil,
	"binary garbage":        bytes.Repeat([]byte{0, 0xff, 0x1b, '{', '"', '\n'}, 5000),
	"half a document":       []byte(`{"schema":1,"event":"att`),
	"another JSON document": []byte("[1,2,3]\n"),
}

// scratch is a name that nothing has.
func scratch() string { return "plugin-check-" + uuid.NewString()[:8] }

// ended is nil for a plugin that ended by itself, whatever its exit code.
func ended(err error) error {
	if err == nil || exited(err) > 0 {
		return nil
	}
	return err
}

// took says how long something took.
func took(since time.Time) string { return fmt.Sprintf("%.2f s", time.Since(since).Seconds()) }
