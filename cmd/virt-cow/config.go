package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/virt-cow/virt-cow/internal/config"
)

// ConfigCmd looks at the configuration.
type ConfigCmd struct {
	Check   ConfigCheckCmd   `cmd:"" help:"Print everything that is wrong with the configuration."`
	Show    ConfigShowCmd    `cmd:"" help:"Print the values in effect and where each comes from."`
	Example ConfigExampleCmd `cmd:"" help:"Print a configuration file with every key and its default, with comments."`
}

// ConfigCheckCmd checks a file, or what is in effect.
type ConfigCheckCmd struct {
	File string `arg:"" optional:"" help:"File to check, instead of what is in effect." type:"path"`
}

// Run prints all problems; with one that is more than a warning the exit code is that for a failed verification.
func (c *ConfigCheckCmd) Run(env *Env) error {
	s := env.Settings
	if c.File != "" {
		s = config.Read(c.File, func(string) (string, bool) { return "", false })
	}
	problems := append(s.Problems(), s.CheckHost()...)
	failed := 0
	for _, p := range problems {
		if !p.Warning {
			failed++
		}
	}
	if env.JSON {
		if problems == nil {
			problems = []config.Problem{}
		}
		if err := printJSON(env, struct {
			File     string           `json:"file,omitempty"`
			OK       bool             `json:"ok"`
			Problems []config.Problem `json:"problems"`
		}{s.File, failed == 0, problems}); err != nil {
			return err
		}
	} else {
		for _, p := range problems {
			fmt.Fprintln(env.Stdout, p)
		}
	}
	if failed > 0 {
		return exitError{fmt.Errorf("%s in the configuration", count(failed, "error")), exitVerify}
	}
	if !env.JSON {
		fmt.Fprintf(env.Stdout, "ok: %s\n", or(s.File, "no file, all defaults"))
	}
	return nil
}

// ConfigShowCmd shows what is in effect.
type ConfigShowCmd struct{}

// shown is one value in effect.
type shown struct {
	Key   string `json:"key"`
	Value any    `json:"value"`
	From  string `json:"from"` // default; FILE:LINE; env NAME; flag --NAME
}

// Run prints the values in the syntax of the file, errors on stderr.
func (c *ConfigShowCmd) Run(env *Env) error {
	var values []shown
	for _, k := range config.Keys() {
		values = append(values, shown{k.Name, env.Config.Get(k.Name), env.Settings.From(k.Name)})
	}
	if env.JSON {
		if err := printJSON(env, struct {
			File   string  `json:"file,omitempty"`
			Values []shown `json:"values"`
		}{env.Settings.File, values}); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
		for _, v := range values {
			text, err := json.Marshal(v.Value)
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "%s = %s\t# %s\n", v.Key, strings.ReplaceAll(string(text), `","`, `", "`), v.From)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if err := env.Settings.Err(); err != nil {
		return exitError{fmt.Errorf("%w\nWhat is wrong is shown with its default, if it could not be read at all", err), exitVerify}
	}
	return nil
}

// ConfigExampleCmd prints the example.
type ConfigExampleCmd struct{}

// Run prints it.
func (c *ConfigExampleCmd) Run(env *Env) error {
	if env.JSON {
		return exitError{errors.New("the example is TOML: leave out --json"), exitUsage}
	}
	_, err := fmt.Fprint(env.Stdout, config.Example)
	return err
}
