// Command virt-cow is a copy-on-write layer for libvirt guests on shared storage; see README.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/completion"
	"github.com/virt-cow/virt-cow/internal/config"
)

// version is set by the build.
var version = "dev"

// Env is what every command gets.
type Env struct {
	Context context.Context
	Log     zerolog.Logger
	Stdout  io.Writer
	Stderr  io.Writer
	JSON    bool

	Config   config.Config     // what is in effect: file, environment, flags
	Settings *config.Effective // the same, with where each value comes from and what is wrong
	RunDir   string            // Config.RunDir
	Parser   *kong.Kong
}

// A flag with the tag key sets that key of the configuration. A command with the tag lenient runs although the
// configuration has errors: what serves guests must not fail because somebody mistyped a key, and what helps to find
// the error must run too; the latter is "silent" about it, or tells it in its own way.
type cli struct {
	JSON    bool             `help:"Print JSON." name:"json"`
	Config  string           `help:"Configuration file (default /etc/virt-cow/config.toml, $$VIRT_COW_CONFIG)." type:"path" placeholder:"FILE"`
	RunDir  string           `help:"Sockets, locks and exception caches; on tmpfs." key:"run_dir" type:"path" placeholder:"DIR"`
	Debug   bool             `help:"Log more ($$VIRT_COW_DEBUG)."`
	Version kong.VersionFlag `help:"Print the version and exit."`

	Volume  VolumeCmd  `cmd:"" group:"Volumes and guests:" help:"Make, list, find and delete volumes."`
	Attach  AttachCmd  `cmd:"" group:"Volumes and guests:" help:"Give a guest a volume, now and whenever it starts."`
	Detach  DetachCmd  `cmd:"" group:"Volumes and guests:" help:"Take a volume from a guest."`
	Hydrate HydrateCmd `cmd:"" group:"Volumes and guests:" help:"Steer the background copy of clones."`
	Cache   CacheCmd   `cmd:"" group:"Volumes and guests:" help:"Switch the exception caches of volumes, so that other hosts can have them open too."`
	Status  StatusCmd  `cmd:"" group:"Volumes and guests:" help:"Show volumes in use, and what is wrong with them."`

	Backup  BackupCmd  `cmd:"" group:"Backups:" help:"Back guests up while they run, and see to their backups."`
	Restore RestoreCmd `cmd:"" group:"Backups:" help:"Get disks out of backups."`
	Archive ArchiveCmd `cmd:"" group:"Backups:" help:"Make and look after the archive that backups are kept in."`

	ImageNode ImageNodeCmd `cmd:"" group:"Backups:" help:"Copy guests' disks into the archive, as the image node."`

	Daemon        DaemonCmd `cmd:"" group:"This host:" help:"Attach volumes to guests as they start."`
	Doctor        DoctorCmd `cmd:"" group:"This host:" lenient:"silent" help:"Find what is wrong with this host, and the commands that mend it."`
	Host          HostCmd   `cmd:"" group:"This host:" help:"Show the hosts that own volumes, and say that one is dead."`
	Configuration ConfigCmd `cmd:"" name:"config" group:"This host:" lenient:"silent" help:"Check and show the configuration."`
	Plugin        PluginCmd `cmd:"" group:"This host:" lenient:"silent" help:"Show plugins, and try one out."`

	Store StoreCmd `cmd:"" group:"Without any daemon:" lenient:"silent" help:"Make and examine stores."`
	Serve ServeCmd `cmd:"" group:"Without any daemon:" lenient:"warn" help:"Serve one volume over NBD in the foreground."`

	Hook       HookCmd       `cmd:"" group:"This host:" lenient:"silent" help:"What libvirt's hook script calls."`
	Completion CompletionCmd `cmd:"" group:"This program:" lenient:"silent" help:"Print the script that completes commands in a shell."`
	ExportCut  ExportCutCmd  `cmd:"" hidden:"" lenient:"silent" help:"Export a disk as of a cut to the image node."`
	Man        ManCmd        `cmd:"" hidden:"" lenient:"silent" help:"Write the man pages."`
}

func main() {
	if code, is := calledAsHook(os.Args[1:], os.Stderr); is {
		os.Exit(code)
	}
	// Each NBD connection keeps a thread in the kernel, and the Go scheduler takes a while to notice that
	// such a thread's processor is free: have some to spare.
	runtime.GOMAXPROCS(runtime.NumCPU() + 4)
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	var c cli
	ended := -1
	parser := newParser(&c, stdout, stderr, func(code int) { ended = code })
	if len(args) > 0 && args[0] == completion.Command { // its words are not ours to parse
		answerCompletion(parser.Model, args[1:], stdout)
		return exitOK
	}
	k, err := parser.Parse(args)
	if ended >= 0 { // --help, --version
		return ended
	}
	if err != nil {
		fmt.Fprintf(stderr, "virt-cow: %v\nTry: %s --help\n", err, commandOf(err))
		return exitUsage
	}
	if err := passOn(k); err != nil {
		fmt.Fprintf(stderr, "virt-cow: %v\n", err)
		return exitFailed
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	level := zerolog.InfoLevel
	if c.Debug || switchedOn(os.Getenv("VIRT_COW_DEBUG")) {
		level = zerolog.DebugLevel
	}
	env := &Env{
		Context: ctx, Stdout: stdout, Stderr: stderr, JSON: c.JSON, Log: newLog(stderr, level),
		Settings: settings(c.Config, k), Parser: parser,
	}
	env.Config = env.Settings.Config
	env.RunDir = env.Config.RunDir
	if err := env.Settings.Err(); err != nil {
		switch lenience(k.Selected()) {
		case "":
			fmt.Fprintf(stderr, "virt-cow: %v\nTry: virt-cow config check\n", err)
			return exitUsage
		case "warn":
			env.Log.Warn().Err(err).Msg("what is wrong in the configuration has its default")
		}
	}
	if err := k.Run(env); err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = errors.New("interrupted")
		}
		fmt.Fprintf(stderr, "virt-cow: %v\n", err)
		return exitCode(err)
	}
	return exitOK
}

// switchedOn reads a variable that is on or off, whatever it holds: one that kong can't read would keep engines from starting.
func switchedOn(text string) bool {
	return !slices.Contains([]string{"", "0", "no", "off", "false"}, strings.ToLower(text))
}

func newParser(c *cli, stdout, stderr io.Writer, exit func(int)) *kong.Kong {
	return kong.Must(c,
		kong.Name("virt-cow"),
		kong.Description("Copy-on-write disks for libvirt guests on shared storage: instant clones, live migration and online backup without stale tables."),
		kong.UsageOnError(),
		kong.Writers(stdout, stderr),
		kong.Exit(exit),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100, FlagsLast: true}),
		kong.Help(helpWithExamples),
		kong.AutoGroup(func(parent kong.Visitable, _ *kong.Flag) *kong.Group {
			if _, top := parent.(*kong.Application); top {
				return &kong.Group{Key: "all", Title: "Flags of all commands:"}
			}
			return nil
		}),
		kong.ValueFormatter(helpOfValue),
		kong.Vars{"version": version},
		sizeMapper,
	)
}

// settings reads the configuration and lets the command's flags win over it.
func settings(path string, k *kong.Context) *config.Effective {
	s := config.Read(path, os.LookupEnv)
	for _, p := range k.Path {
		if p.Flag != nil && p.Flag.Tag.Get("key") != "" {
			s.Flag(p.Flag.Tag.Get("key"), p.Flag.Target.String(), "--"+p.Flag.Name)
		}
	}
	return s
}

// lenience is what the nearest command with the tag lenient says.
func lenience(n *kong.Node) string {
	for ; n != nil; n = n.Parent {
		if n.Tag != nil && n.Tag.Get("lenient") != "" {
			return n.Tag.Get("lenient")
		}
	}
	return ""
}

// helpWithExamples is kong's help with a command's examples below.
func helpWithExamples(options kong.HelpOptions, k *kong.Context) error {
	if err := kong.DefaultHelpPrinter(options, k); err != nil || k.Selected() == nil {
		return err
	}
	if lines := examples[k.Selected().Path()]; len(lines) > 0 {
		fmt.Fprintf(k.Stdout, "\nExamples:\n  %s\n", strings.Join(lines, "\n  "))
	}
	return nil
}

// helpOfValue shows behind a flag's help what its value is without it: kong shows a default only where there is no
// placeholder, and knows nothing of the configuration.
func helpOfValue(v *kong.Value) string {
	if key := v.Tag.Get("key"); key != "" {
		return strings.TrimSuffix(v.Help, ".") + " (" + keyHelp(key) + ")."
	}
	help := kong.DefaultHelpValueFormatter(v)
	if v.HasDefault && v.Default != "" {
		help = strings.TrimSuffix(help, ".") + " (default " + v.Default + ")."
	}
	return help
}

// keyHelp tells how else a key of the configuration is set.
func keyHelp(key string) string {
	def := config.Default()
	text := ""
	if value, ok := def.Get(key).(string); ok && value != "" {
		text = "default " + value + ", "
	}
	for _, k := range config.Keys() {
		if k.Name == key {
			return text + key + " in the configuration, $" + k.Env
		}
	}
	return ""
}

// commandOf is the command that could not be parsed, as far as it was understood.
func commandOf(err error) string {
	var parse *kong.ParseError
	if errors.As(err, &parse) && parse.Context != nil {
		if node := parse.Context.Selected(); node != nil {
			return node.FullPath()
		}
	}
	return "virt-cow"
}

// newLog writes lines for people on a terminal and JSON elsewhere, where a log collector reads.
func newLog(w io.Writer, level zerolog.Level) zerolog.Logger {
	if isTerminal(w) {
		w = zerolog.ConsoleWriter{Out: overBar{w}, TimeFormat: "15:04:05"}
	}
	zerolog.TimeFieldFormat = "2006-01-02T15:04:05.000Z07:00" // a migration has many steps in a second
	return zerolog.New(w).Level(level).With().Timestamp().Logger()
}
