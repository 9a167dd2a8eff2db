package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/api"
)

// victim is a process that is killed with SIGKILL.
type victim struct {
	name string
	kill func(*cell) error       // an error says that it is not there to be killed
	back func(*testing.T, *cell) // what its supervisor does; nil: it is for others to bring it back
}

var victims = []victim{
	{
		name: "daemon",
		kill: func(c *cell) error { return c.vc.Daemon().Stop(syscall.SIGKILL) },
		back: func(t *testing.T, c *cell) {
			_, err := c.vc.StartDaemon(t.Context())
			must(t, err)
		},
	},
	{
		name: "engine", // the daemon starts it again
		kill: func(c *cell) error {
			s, err := api.NewEngine(c.Path("/run/virt-cow/" + c.phase.volume + ".ctl")).Status(context.Background())
			if err != nil {
				return err
			}
			return c.Kill(context.Background(), s.PID, syscall.SIGKILL)
		},
	},
	{
		name: "libvirtd",
		kill: func(c *cell) error { return c.Libvirtd().Stop(syscall.SIGKILL) },
		back: func(t *testing.T, c *cell) { must(t, c.StartLibvirtd(t.Context())) },
	},
	{
		name: "qemu", // the domain is started again once it is off
		kill: func(c *cell) error {
			pid, err := c.guestProcess()
			if err != nil {
				return err
			}
			return c.Kill(context.Background(), pid, syscall.SIGKILL)
		},
	},
}

// guestProcess is the guest's QEMU, as seen on the host.
func (c *cell) guestProcess() (int, error) {
	list, err := c.processes("qemu-system-x86_64")
	if err != nil {
		return 0, err
	}
	if len(list) != 1 {
		return 0, fmt.Errorf("the guest has %d processes: %v", len(list), list)
	}
	return list[0], nil
}

// processes are those of the host that run a program with these arguments among theirs, as seen there.
func (b *bed) processes(program string, args ...string) ([]int, error) {
	paths, err := filepath.Glob(b.Path("/proc") + "/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var list []int
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		} else if err != nil {
			return nil, err
		}
		words := strings.Split(string(text), "\x00")
		if filepath.Base(words[0]) != filepath.Base(program) {
			continue
		}
		has := map[string]bool{}
		for _, w := range words[1:] {
			has[w] = true
		}
		all := true
		for _, a := range args {
			all = all && has[a]
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil && all {
			list = append(list, pid)
		}
	}
	return list, nil
}
