package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/plugin"
)

// PluginCmd shows and exercises plugins.
type PluginCmd struct {
	List  PluginListCmd  `cmd:"" help:"Show this host's plugins, and which are not run and why."`
	Check PluginCheckCmd `cmd:"" help:"Exercise a plugin as the daemon would run it, with events that did not happen."`
}

// PluginListCmd reads the folders. Nothing is run.
type PluginListCmd struct{}

// pluginInfo is what is told of one file.
type pluginInfo struct {
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	Path  string `json:"path"`            // of what is run
	Error string `json:"error,omitempty"` // why it is not run
	Off   bool   `json:"off,omitempty"`   // no plugin, or switched off
}

// Run prints events' plugins in the order in which they are called, then providers.
func (c *PluginListCmd) Run(env *Env) error {
	dir := env.Config.Plugins.Dir
	list, refused := []pluginInfo{}, 0
	for _, k := range []struct{ kind, dir string }{{plugin.KindEvent, dir}, {plugin.KindProvider, plugin.ProvidersDir(dir)}} {
		entries, err := plugin.List(k.dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			i := pluginInfo{Kind: k.kind, Name: e.Name, Path: e.Path, Off: e.Off}
			if e.Err != nil {
				i.Path, i.Error = e.File, e.Err.Error()
			}
			if e.Err != nil && !e.Off {
				refused++
			}
			list = append(list, i)
		}
	}
	if env.JSON {
		if err := printJSON(env, list); err != nil {
			return err
		}
	} else {
		printPlugins(env, list, dir)
	}
	if refused > 0 {
		return exitError{fmt.Errorf("%d of %d plugins can't be trusted, so they are not run and veto what they would be asked", refused,
			len(list)), exitDegraded}
	}
	return nil
}

func printPlugins(env *Env, list []pluginInfo, dir string) {
	if len(list) == 0 {
		fmt.Fprintf(env.Stdout, "no plugins in %s and %s\n", dir, plugin.ProvidersDir(dir))
		return
	}
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KIND\tNAME\tRUN\tPATH")
	for _, i := range list {
		run := "yes"
		if i.Error != "" {
			run = "no"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", i.Kind, i.Name, run, i.Path)
	}
	w.Flush()
	for _, i := range list {
		if i.Error != "" {
			fmt.Fprintf(env.Stdout, "\n%s: %s\n", i.Name, i.Error)
		}
	}
}

// PluginCheckCmd exercises one plugin.
type PluginCheckCmd struct {
	Path    string        `arg:"" help:"The plugin: a file, or a name in the folders of plugins." complete:"file"`
	Kind    string        `help:"event or provider. What the plugin says that it is by default." enum:",event,provider" default:"" placeholder:"KIND"`
	Size    Size          `help:"Store that a provider is to make." default:"16M" placeholder:"SIZE"`
	Timeout time.Duration `help:"Of one call. The configured one by default." placeholder:"TIME"`
	Output  bool          `help:"Show what the plugin writes."`
}

// Run prints a line for each thing tried.
func (c *PluginCheckCmd) Run(env *Env) error {
	path, err := c.find(env.Config.Plugins.Dir)
	if err != nil {
		return err
	}
	log := zerolog.Nop()
	if c.Output {
		log = env.Log
	}
	if c.Timeout == 0 {
		c.Timeout = time.Duration(env.Config.Plugins.Timeout)
	}
	results, failed := []plugin.Result{}, 0
	kind, ok, err := plugin.Check(env.Context, path, plugin.CheckConfig{
		Config: plugin.Config{Timeout: c.Timeout, Version: version, Log: log},
		Kind:   c.Kind, Size: int64(c.Size),
		Report: func(r plugin.Result) {
			results = append(results, r)
			verdict := "PASS"
			if !r.OK {
				verdict = "FAIL"
				failed++
			}
			if !env.JSON {
				fmt.Fprintln(env.Stdout, strings.TrimRight(fmt.Sprintf("%s  %s  %s", verdict, r.What, r.Detail), " "))
			}
		},
	})
	if err != nil {
		return err
	}
	if env.JSON {
		out := struct {
			Path    string          `json:"path"`
			Kind    string          `json:"kind,omitempty"`
			OK      bool            `json:"ok"`
			Results []plugin.Result `json:"results"`
		}{path, kind, ok, results}
		if err := printJSON(env, out); err != nil {
			return err
		}
	}
	if !ok {
		return exitError{fmt.Errorf("%s: %d of %d checks failed", path, failed, len(results)), exitVerify}
	}
	if !env.JSON {
		fmt.Fprintf(env.Stdout, "%s: all %d checks of kind %s passed\n", path, len(results), kind)
	}
	return nil
}

// find takes what is no path for a name.
func (c *PluginCheckCmd) find(dir string) (string, error) {
	if c.Timeout < 0 {
		return "", exitError{errors.New("--timeout: a time greater than zero"), exitUsage}
	}
	if strings.Contains(c.Path, "/") {
		return filepath.Abs(c.Path)
	}
	for _, dir := range []string{dir, plugin.ProvidersDir(dir), "."} {
		if _, err := filepath.EvalSymlinks(filepath.Join(dir, c.Path)); err == nil {
			return filepath.Abs(filepath.Join(dir, c.Path))
		}
	}
	return "", fmt.Errorf("no plugin %s in %s or %s: give its path", c.Path, dir, plugin.ProvidersDir(dir))
}
