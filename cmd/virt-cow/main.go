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
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"
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
	RunDir  string
}

type cli struct {
	JSON    bool             `help:"Print JSON." name:"json"`
	RunDir  string           `help:"Sockets, locks and exception caches; on tmpfs." default:"/run/virt-cow" env:"VIRT_COW_RUN_DIR" placeholder:"DIR"`
	Debug   bool             `help:"Log more." env:"VIRT_COW_DEBUG"`
	Version kong.VersionFlag `help:"Print the version and exit."`

	Store  StoreCmd  `cmd:"" help:"Make and examine stores, without any daemon."`
	Serve  ServeCmd  `cmd:"" help:"Serve one volume over NBD in the foreground."`
	Daemon DaemonCmd `cmd:"" help:"Attach volumes to guests as they start."`
	Attach AttachCmd `cmd:"" help:"Give a guest a volume."`
	Detach DetachCmd `cmd:"" help:"Take a volume from a guest."`
	Status StatusCmd `cmd:"" help:"Show the daemon's volumes."`
	Hook   HookCmd   `cmd:"" help:"What libvirt's hook script calls."`
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
	parser := kong.Must(&c,
		kong.Name("virt-cow"),
		kong.Description("Copy-on-write disks for libvirt guests on shared storage: instant clones, live migration and online backup without stale tables."),
		kong.UsageOnError(),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { ended = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.ValueFormatter(helpWithDefault),
		kong.Vars{"version": version},
		sizeMapper,
	)
	k, err := parser.Parse(args)
	if ended >= 0 { // --help, --version
		return ended
	}
	if err != nil {
		fmt.Fprintf(stderr, "virt-cow: %v\nTry: %s --help\n", err, commandOf(err))
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	level := zerolog.InfoLevel
	if c.Debug {
		level = zerolog.DebugLevel
	}
	env := &Env{Context: ctx, Stdout: stdout, Stderr: stderr, JSON: c.JSON, RunDir: c.RunDir, Log: newLog(stderr, level)}
	if err := k.Run(env); err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = errors.New("interrupted")
		}
		fmt.Fprintf(stderr, "virt-cow: %v\n", err)
		return exitCode(err)
	}
	return exitOK
}

// helpWithDefault shows a flag's default behind its help: kong shows it only where there is no placeholder.
func helpWithDefault(v *kong.Value) string {
	help := kong.DefaultHelpValueFormatter(v)
	if v.HasDefault && v.Default != "" {
		help = strings.TrimSuffix(help, ".") + " (default " + v.Default + ")."
	}
	return help
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
	return zerolog.New(w).Level(level).With().Timestamp().Logger()
}
