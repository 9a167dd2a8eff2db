package pack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/launch"
	"github.com/virt-cow/virt-cow/internal/nbd"
)

// insideArg as first argument makes this program one that a test runs in a machine.
const insideArg = "inside"

const insideProgram = "/share/pack.test"

// The volume of the tests, and what its guest writes last.
const lastWords = "written on the way down"

// inside does what the daemon, or a guest, would.
//
//	start VOLUME STORE [DEVICE...]  has the engine started; prints the launcher and the process
//	follow VOLUME STORE [DEVICE...] the same, then says so, waits for the process's end and prints why
//	stop VOLUME                     stops the engine cleanly and clears up
//	guest VOLUME FILE               a disk's user: makes FILE once connected, at SIGTERM writes to the disk, then to FILE
func inside(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if len(args) < 2 {
		return errors.New("too few arguments")
	}
	switch volume := args[1]; args[0] {
	case "start":
		_, err := startEngine(ctx, volume, args[2], args[3:])
		return err
	case "follow":
		p, err := startEngine(ctx, volume, args[2], args[3:])
		if err != nil {
			return err
		}
		fmt.Println("follows")
		<-p.Done()
		fmt.Println(p.Why())
		return nil
	case "stop":
		return stopEngine(ctx, volume)
	case "guest":
		return beGuest(ctx, volume, args[2])
	}
	return fmt.Errorf("what is %s", args[0])
}

func specOf(volume, store string, devices []string) (*api.EngineSpec, string) {
	spec := &api.EngineSpec{
		Version: api.SpecVersion, Volume: volume, Store: store, Devices: devices,
		Socket: filepath.Join(launch.RunDir, volume+".sock"), Control: filepath.Join(launch.RunDir, volume+".ctl"),
	}
	return spec, filepath.Join(launch.RunDir, volume+api.SpecSuffix)
}

func launcher(ctx context.Context) (launch.Launcher, error) {
	return launch.New(ctx, launch.Config{
		Launcher: launch.AutoSetting, Program: "/usr/bin/virt-cow", RunDir: launch.RunDir, LogDir: "/var/log/virt-cow",
	}, zerolog.New(os.Stderr))
}

func startEngine(ctx context.Context, volume, store string, devices []string) (*launch.Process, error) {
	l, err := launcher(ctx)
	if err != nil {
		return nil, err
	}
	spec, path := specOf(volume, store, devices)
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return nil, err
	}
	p, err := l.Start(ctx, spec, path)
	if err != nil {
		return nil, err
	}
	fmt.Println(l.Name(), p.PID)
	engine := api.NewEngine(spec.Control)
	for {
		s, err := engine.Status(ctx)
		if err == nil && s.PID == p.PID {
			return p, nil
		}
		select {
		case <-p.Done():
			return nil, errors.New(p.Why())
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func stopEngine(ctx context.Context, volume string) error {
	l, err := launcher(ctx)
	if err != nil {
		return err
	}
	spec, path := specOf(volume, "", nil)
	p, err := launch.Adopt(spec.Control)
	if err != nil {
		return err
	}
	if p != nil {
		p.Terminate()
		<-p.Done()
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return l.Gone(ctx, volume)
}

func beGuest(ctx context.Context, volume, file string) error {
	asked, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	disk, err := nbd.Dial(ctx, "nbd+unix:///"+volume+"?socket="+filepath.Join(launch.RunDir, volume+".sock"), nbd.Options{})
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte("connected"), 0o644); err != nil {
		return err
	}
	<-asked.Done()
	time.Sleep(2 * time.Second) // a guest takes its time to shut down
	words := append([]byte(lastWords), bytes.Repeat([]byte{0}, 4096-len(lastWords))...)
	_, err = disk.WriteAt(words, 0)
	if err == nil {
		err = disk.Flush()
	}
	return os.WriteFile(file, fmt.Appendf(nil, "end: %v", err), 0o644)
}
