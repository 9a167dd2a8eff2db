package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/backup"
)

// ExportCutCmd is a host's side of a disk that the image node can't see: the daemon runs it, with api.PullSpec as its input.
type ExportCutCmd struct{}

// exportNice is how nice it is to guests.
const exportNice = 10

// Run ends with its input.
func (c *ExportCutCmd) Run(env *Env) error {
	tasks, err := os.ReadDir("/proc/self/task") // threads that come later take after these
	if err != nil {
		return err
	}
	for _, t := range tasks {
		if id, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, id, exportNice) // a thread that has ended meanwhile
		}
	}
	return backup.Export(env.Context, os.Stdin, env.Stdout, env.Log)
}
