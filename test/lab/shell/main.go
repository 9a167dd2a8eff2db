// Command shell gives a person two hypervisors on this machine: libvirtd and virt-cow's daemon on each, shared disks
// with a clone on one, and a running guest that has it and can be migrated. Run it as root, from the source tree, with
// "make lab"; all is gone when the shell ends.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"

	"github.com/mattn/go-isatty"

	"github.com/virt-cow/virt-cow/test/lab"
)

const (
	domain    = "web"
	volume    = "web1"
	masterMiB = 192
)

func main() {
	lab.Main()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		if errors.Is(err, lab.ErrMissing) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

func say(format string, args ...any) { fmt.Printf("lab: "+format+"\n", args...) }

func run(ctx context.Context) (err error) {
	if err := lab.Check(); err != nil {
		return err
	}
	log := &logFile{}
	site, err := lab.NewSite(ctx, lab.SiteConfig{Host: lab.Config{Log: log}})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, log.early.String())
	}
	defer func() {
		err = errors.Join(err, site.Close())
		if err == nil {
			say("all is taken down")
		}
	}()
	if err := log.open(said(site)); err != nil {
		return err
	}
	if err := prepare(ctx, site); err != nil {
		b, _ := os.ReadFile(said(site))
		return fmt.Errorf("%w\nwhat the hosts' programs said:\n%s", err, b)
	}
	if err := instruct(site); err != nil {
		return err
	}
	return shell(ctx, site)
}

// logFile takes what the hosts' programs say. Its file is in the site's folder, which is there only after they began to.
type logFile struct {
	mu    sync.Mutex
	early bytes.Buffer
	file  *os.File
}

func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return l.early.Write(p)
	}
	return l.file.Write(p)
}

func (l *logFile) open(path string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	l.file = f
	_, err = f.Write(l.early.Bytes())
	return err
}

func instruct(site *lab.Site) error {
	a, b := site.Hosts[0], site.Hosts[1]
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	for _, line := range [][2]string{
		{a.Name + " COMMAND", "run it on this host; without a command, a shell there"},
		{b.Name + " COMMAND", "and on this one; admin COMMAND: on a machine that reaches both"},
		{a.Name + " virsh list", "the guest, " + domain + "; or: admin virsh -c " + a.URI() + " list"},
		{a.Name + " virt-cow status", "its volume, " + volume},
		{fmt.Sprintf("%s virsh migrate --live --p2p %s %s", a.Name, domain, b.URI()), "there"},
		{fmt.Sprintf("%s virsh migrate --live --p2p %s %s", b.Name, domain, a.URI()), "and back"},
		{"tail -f $CONSOLE", "the guest's console: a checker writes and reads its disk all the time"},
		{"tail -f $LOG", "what daemons and libvirtds say"},
		{"exit", "ends all and leaves nothing behind"},
	} {
		fmt.Fprintf(w, "     %s\t%s\n", line[0], line[1])
	}
	say("type:")
	return w.Flush()
}

// prepare brings up daemons, disks and the guest, and makes a command a host.
func prepare(ctx context.Context, site *lab.Site) error {
	say("two hosts run, %s and %s", site.Hosts[0].Name, site.Hosts[1].Name)
	program := filepath.Join(site.Dir, "virt-cow")
	if err := lab.BuildVirtCow(program); err != nil {
		return err
	}
	if err := os.Mkdir(commands(site), 0o755); err != nil {
		return err
	}
	for _, h := range append([]*lab.Host{site.Admin}, site.Hosts...) {
		if err := writeCommand(filepath.Join(commands(site), h.Name), h); err != nil {
			return err
		}
	}
	for _, h := range site.Hosts {
		if err := errors.Join(h.InstallHook(program), h.ReloadLibvirtd()); err != nil {
			return err
		}
		if _, err := h.VirtCow(program).StartDaemon(ctx); err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
	}
	say("virt-cow's daemon runs on both")
	a := site.Hosts[0]
	master, store, err := makeDisks(ctx, site)
	if err != nil {
		return err
	}
	vc := a.VirtCow(program)
	if _, err := vc.Run(ctx, "store", "create", "--master", master.Path, "--name", volume, store.Path); err != nil {
		return err
	}
	say("store %s is a clone of the master %s; both hosts see both, each through a device of its own", store.Path, master.Path)
	guest, err := a.Define(ctx, lab.GuestConfig{Name: domain})
	if err != nil {
		return err
	}
	if _, err := vc.Run(ctx, "attach", domain, "--store", store.Path, "--target", "vdb"); err != nil {
		return err
	}
	if err := guest.Boot(ctx); err != nil {
		return err
	}
	if _, err := vc.Await(ctx, volume, "attached", lab.Attached); err != nil {
		return err
	}
	disk, err := vc.DiskIn(ctx, guest, store.Path)
	if err != nil {
		return err
	}
	if _, err := guest.StartChecker(ctx, lab.CheckerConfig{Name: "checker", Disk: disk, Seed: 1}); err != nil {
		return err
	}
	say("guest %s runs on %s and has the volume as %s", domain, a.Name, disk)
	return os.Symlink(guest.ConsolePath(), console(site))
}

// Where the scripts made by writeCommand are, and what guest and hosts say.
func commands(site *lab.Site) string { return filepath.Join(site.Dir, "commands") }
func console(site *lab.Site) string  { return filepath.Join(site.Dir, "guest.log") }
func said(site *lab.Site) string     { return filepath.Join(site.Dir, "hosts.log") }

func makeDisks(ctx context.Context, site *lab.Site) (master, store *lab.Disk, err error) {
	file := filepath.Join(site.Dir, "golden.raw")
	content := map[string][]byte{"srv/data": bytes.Repeat([]byte("sixteen bytes.. "), masterMiB/2<<20/16)}
	if err := lab.MakeMaster(ctx, file, masterMiB, content); err != nil {
		return nil, nil, err
	}
	if master, err = site.NewDisk(lab.DiskConfig{Name: "golden", File: file, ReadOnly: true}); err != nil {
		return nil, nil, err
	}
	store, err = site.NewDisk(lab.DiskConfig{Name: volume, Size: (masterMiB + 64) << 20})
	return master, store, err
}

// writeCommand makes a script that runs a command on a host, or a shell.
func writeCommand(path string, h *lab.Host) error {
	cmd := h.Command(context.Background(), "")
	var b strings.Builder
	b.WriteString("#!/bin/sh\n[ $# -gt 0 ] || set -- env PS1='" + h.Name + "# ' bash --norc\nexec env")
	own := map[string]bool{}
	for _, v := range os.Environ() {
		own[v] = true
	}
	for _, v := range cmd.Env {
		if !own[v] {
			fmt.Fprintf(&b, " '%s'", strings.ReplaceAll(v, "'", `'\''`))
		}
	}
	for _, arg := range cmd.Args[:len(cmd.Args)-1] {
		b.WriteString(" " + arg)
	}
	b.WriteString(` "$@"` + "\n")
	return os.WriteFile(path, []byte(b.String()), 0o755)
}

// shell is the person's, or reads commands from where there is no terminal. How its last command ended is not ours.
func shell(ctx context.Context, site *lab.Site) error {
	cmd := exec.CommandContext(ctx, "sh")
	if isatty.IsTerminal(os.Stdin.Fd()) {
		cmd = exec.CommandContext(ctx, "bash", "--norc")
		// A Ctrl-C is for what runs in it. Not ignored: it would inherit that.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGINT)
	}
	cmd.Env = append(os.Environ(), "PS1=lab# ", "PATH="+commands(site)+":"+os.Getenv("PATH"),
		"CONSOLE="+console(site), "LOG="+said(site))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}
