package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPlugin(t *testing.T) {
	need(t, "jq")
	b := newBench(t)
	t.Setenv("VIRT_COW_PLUGINS_DIR", b.path("plugins.d"))
	if o := b.run("plugin", "list").exits(exitOK); !strings.Contains(o.stdout, "no plugins in") {
		t.Error(o.stdout)
	}
	for _, dir := range []string{"plugins.d", "providers.d", "stores"} {
		if err := os.Mkdir(b.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(b.path(name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(b.path(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	provider, err := os.ReadFile(filepath.Join("..", "..", "hooks", "plugins", "provider-folder"))
	if err != nil {
		t.Fatal(err)
	}
	put("providers.d/nfs", string(provider), 0o755)
	put("providers.d/nfs.conf", "folder="+b.path("stores")+"\n", 0o600)
	put("plugins.d/10-guard", "#!/bin/sh\n[ $1 != delete ] || { echo never >&2; exit 1; }\n", 0o755)
	put("plugins.d/20-broken", "#!/bin/sh\nexit 1\n", 0o755)
	put("plugins.d/README", "text", 0o644)

	var list []pluginInfo
	if err := json.Unmarshal([]byte(b.run("--json", "plugin", "list").exits(exitOK).stdout), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 4 || list[0].Name != "10-guard" || list[2].Error == "" || !list[2].Off || list[3].Kind != "provider" {
		t.Errorf("%+v", list)
	}
	if o := b.run("plugin", "check", "nfs").exits(exitOK); !strings.Contains(o.stdout, "PASS  create again") || strings.Contains(o.stdout, "FAIL") {
		t.Error(o.stdout)
	}
	if o := b.run("plugin", "check", "--output", b.path("plugins.d/10-guard")).exits(exitOK); !strings.Contains(o.stdout, "never") ||
		!strings.Contains(o.stderr, "never") {
		t.Error(o.stdout, o.stderr)
	}
	if o := b.run("plugin", "check", "20-broken").exits(exitVerify); !strings.Contains(o.stdout, "FAIL  attached: exit 0") {
		t.Error(o.stdout)
	}
	if o := b.run("--json", "plugin", "check", "20-broken").exits(exitVerify); !strings.Contains(o.stdout, `"ok": false`) {
		t.Error(o.stdout)
	}
	b.run("plugin", "check", "--kind", "provider", "10-guard").exits(exitVerify)
	b.run("plugin", "check", "none").exits(exitFailed)
	b.run("plugin", "check", "--timeout", "-1s", "nfs").exits(exitUsage)
	put("plugins.d/10-guard", "#!/bin/sh\n", 0o777)
	if o := b.run("plugin", "list").exits(exitDegraded); !strings.Contains(o.stdout, "chmod go-w") {
		t.Error(o.stdout)
	}
}
