package machine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/test/lab"
)

// The stages of a machine's making, each this program started again: the variable has the stage, the machine's folder,
// the Debian's, and which of inits it gets, a line each.
const (
	stageEnv       = "VIRT_COW_TEST_MACHINE"
	stageSupervise = "supervise"
	stageBoot      = "boot"
	wordReady      = "ready"
)

// What runs as first process: systemd, or a shell that only reaps what is left to it.
var inits = map[string][]string{
	"systemd": {"/lib/systemd/systemd"},
	"plain":   {"/bin/bash", "-c", "while :; do sleep 1; done"},
}

// Main must be called first thing by a program that boots machines. In the other stages it does not return.
func Main() {
	stage := strings.Split(os.Getenv(stageEnv), "\n")
	os.Unsetenv(stageEnv)
	var err error
	switch {
	case stage[0] == stageSupervise && len(stage) == 4:
		err = supervise(stage[1], stage[2], stage[3])
	case stage[0] == stageBoot && len(stage) == 4:
		err = bootInside(stage[1], stage[2], stage[3])
	default:
		return
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// supervise starts the first process, and when standard input ends kills it, with which all in its PID namespace die,
// and removes the machine.
func supervise(dir, tree, init string) error {
	runtime.LockOSThread() // the first process is killed when the thread ends that started it
	group, err := newGroup()
	if err != nil {
		return err
	}
	defer removeGroup(group)
	fd, err := unix.Open(group, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), stageEnv+"="+strings.Join([]string{stageBoot, dir, tree, init}, "\n"))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
		Setsid:     true, Pdeathsig: syscall.SIGKILL, UseCgroupFD: true, CgroupFD: fd,
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("new namespaces: %w", err)
	}
	fmt.Println(wordReady, cmd.Process.Pid)
	told := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cmd.Process.Kill()
		close(told)
	}()
	cmd.Wait() // how it ended is of no interest
	os.Stdout.Close()
	<-told
	return os.RemoveAll(dir)
}

// newGroup makes a control group of version 2.
func newGroup() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		mount, kind, _ := strings.Cut(s.Text(), " - ")
		if strings.HasPrefix(kind, "cgroup2 ") {
			return os.MkdirTemp(strings.Fields(mount)[4], "virt-cow-machine-")
		}
	}
	return "", fmt.Errorf("%w: no control groups of version 2 are mounted", lab.ErrMissing)
}

// removeGroup removes a group with those in it, from the leaves up. They are busy for a moment after the last process.
func removeGroup(group string) {
	for range 200 {
		var dirs []string
		filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		slices.Reverse(dirs)
		for _, d := range dirs {
			os.Remove(d)
		}
		if _, err := os.Stat(group); errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}
