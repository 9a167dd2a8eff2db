// Command demo shows virt-cow's main job on a machine of its own making: a clone made in an instant from a
// master, plugged into a guest because the guest started, hydrated in the background and cut loose. Run it as
// root, from the source tree, with "make demo".
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/mattn/go-isatty"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/test/lab"
)

const (
	masterMiB = 192
	rateMiB   = 48 // of hydration, a second: slow enough to be seen
	volume    = "web1"
	domain    = "demo"
)

func main() {
	lab.Main()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		if errors.Is(err, lab.ErrMissing) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// demo is what the steps share.
type demo struct {
	began         time.Time
	out           io.Writer
	tty           bool
	host          *lab.Host
	vc            *lab.VirtCow
	guest         *lab.Guest
	master, store string
	sum           string // of the master
	disk          string // the guest's device
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "%6.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// show prints what a command said, indented.
func (d *demo) show(text string) {
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		fmt.Fprintf(d.out, "         | %s\n", line)
	}
}

func run(ctx context.Context) (err error) {
	d := &demo{began: time.Now(), out: os.Stdout, tty: isatty.IsTerminal(os.Stdout.Fd())}
	if err := lab.Check(); err != nil {
		return err
	}
	log := &bytes.Buffer{}
	d.host, err = lab.New(ctx, lab.Config{Name: "demo", Log: log})
	if err != nil {
		return err
	}
	dir := d.host.Dir
	err = d.steps(ctx)
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: what the daemon and libvirtd said:\n%s", log)
	}
	if err := errors.Join(err, d.host.Close()); err != nil {
		return err
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s was left behind", dir)
	}
	d.say("all is taken down: libvirtd, guest and namespaces are gone, no file is left")
	return nil
}

func (d *demo) steps(ctx context.Context) error {
	d.say("a private libvirtd runs, in namespaces of its own")
	for _, step := range []func(context.Context) error{
		d.build, d.makeMaster, d.clone, d.want, d.start, d.change, d.hydrate, d.proveMaster, d.powerOff, d.proveClone,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) build(ctx context.Context) error {
	program := filepath.Join(d.host.Dir, "virt-cow")
	if err := lab.BuildVirtCow(program); err != nil {
		return err
	}
	d.vc = d.host.VirtCow(program)
	if _, err := d.vc.StartDaemon(ctx); err != nil {
		return err
	}
	d.say("virt-cow daemon runs, connected to libvirt")
	return nil
}

func (d *demo) makeMaster(ctx context.Context) error {
	d.master = filepath.Join(d.host.Dir, "golden.raw")
	files := map[string][]byte{
		"etc/motd":   []byte("welcome to the golden image\n"),
		"srv/data":   bytes.Repeat([]byte("sixteen bytes.. "), masterMiB/2<<20/16),
		"srv/readme": []byte("this file is in the master\n"),
	}
	if err := lab.MakeMaster(ctx, d.master, masterMiB, files); err != nil {
		return err
	}
	var err error
	d.sum, err = lab.Checksum(d.master)
	d.say("master: a raw file of %d MiB with an ext4, SHA-256 %.16s...", masterMiB, d.sum)
	return err
}

func (d *demo) clone(ctx context.Context) error {
	d.store = filepath.Join(d.host.Dir, volume+".vcow")
	began := time.Now()
	out, err := d.vc.Run(ctx, "store", "create", "--master", d.master, "--name", volume, d.store)
	if err != nil {
		return err
	}
	d.say("virt-cow store create: a clone in %d ms, start of the program included", time.Since(began).Milliseconds())
	d.show(out)
	return nil
}

func (d *demo) want(ctx context.Context) error {
	var err error
	if d.guest, err = d.host.Define(ctx, lab.GuestConfig{Name: domain}); err != nil {
		return err
	}
	out, err := d.vc.Run(ctx, "attach", domain, "--store", d.store, "--target", "vdb", "--no-hydrate")
	if err != nil {
		return err
	}
	d.say("guest %s is defined, still off; virt-cow attach:", domain)
	d.show(out)
	return nil
}

func (d *demo) start(ctx context.Context) error {
	if err := d.guest.Start(ctx); err != nil {
		return err
	}
	began := time.Now()
	d.say("virsh start %s", domain)
	s, err := d.vc.Await(ctx, volume, "attached", lab.Attached)
	if err != nil {
		return err
	}
	d.say("the daemon saw the start, started engine process %d and plugged the disk in, %d ms later", s.PID, time.Since(began).Milliseconds())
	if err := d.guest.WaitUp(ctx); err != nil {
		return err
	}
	d.say("the guest's Linux is up (emulated, without KVM)")
	return nil
}

func (d *demo) change(ctx context.Context) error {
	i, err := d.vc.StoreInfo(ctx, d.store)
	if err != nil {
		return err
	}
	id, err := uuid.Parse(i.UUID)
	if err != nil {
		return err
	}
	if d.disk, err = d.guest.Disk(ctx, libvirtx.Serial(id)); err != nil {
		return err
	}
	out, err := d.guest.Run(ctx, "mount "+d.disk+" /mnt && cat /mnt/etc/motd && echo changed by the guest >/mnt/etc/motd && "+
		"dd if=/dev/urandom of=/mnt/srv/new bs=64k count=64 2>/dev/null && rm /mnt/srv/readme && sync && df -h /mnt | tail -n 1")
	if err != nil {
		return err
	}
	d.say("the guest mounts %s, reads the master's file, then changes, adds and deletes files:", d.disk)
	d.show(out)
	return nil
}

func (d *demo) hydrate(ctx context.Context) error {
	run, rate := true, int64(rateMiB<<20)
	_, err := api.NewDaemon(d.host.Path(d.vc.RunDir)).Hydration(ctx, api.VolumeHydrationRequest{
		Volume: volume, HydrationRequest: api.HydrationRequest{Run: &run, Rate: &rate},
	})
	if err != nil {
		return err
	}
	if _, err := d.guest.Run(ctx, "while :; do echo line >>/mnt/srv/log; sync; sleep 0.1; done >/dev/null 2>&1 & echo $! >/tmp/pid"); err != nil {
		return err
	}
	d.say("hydration copies the rest in the background, limited to %d MiB/s so that it can be seen; the guest goes on writing", rateMiB)
	last := int64(-1)
	_, err = d.vc.Await(ctx, volume, "cut loose", func(s *api.VolumeStatus) bool {
		if s != nil && s.Engine != nil && s.Engine.Hydration != nil {
			last = d.bar(s.Engine.Hydration, last)
		}
		return lab.CutLoose(s)
	})
	if err != nil {
		return err
	}
	out, err := d.vc.Run(ctx, "status")
	if err != nil {
		return err
	}
	d.say("the clone is cut loose from its master, under the running guest:")
	d.show(out)
	return nil
}

// bar shows hydration: in place on a terminal, a line every 20 % elsewhere. It returns what to pass as last.
func (d *demo) bar(h *api.Hydration, last int64) int64 {
	const width, step = 40, 20
	if h.Total == 0 {
		return last
	}
	percent := h.Done * 100 / h.Total
	full := int(percent) * width / 100
	line := fmt.Sprintf("         [%s%s] %3d%%  %d of %d MiB", strings.Repeat("=", full), strings.Repeat(" ", width-full), percent, h.Done>>20, h.Total>>20)
	switch {
	case d.tty && percent < 100:
		fmt.Fprintf(d.out, "\r%s", line)
	case d.tty && last < 100:
		fmt.Fprintf(d.out, "\r%s\n", line)
	case !d.tty && percent/step != last/step:
		fmt.Fprintln(d.out, line)
	}
	return percent
}

func (d *demo) proveMaster(ctx context.Context) error {
	now, err := lab.Checksum(d.master)
	if err != nil {
		return err
	}
	if now != d.sum {
		return fmt.Errorf("the master has changed: SHA-256 is %s", now)
	}
	if err := os.Remove(d.master); err != nil {
		return err
	}
	d.say("the master is unchanged, SHA-256 %.16s...; now it is deleted", now)
	out, err := d.guest.Run(ctx, "kill $(cat /tmp/pid); echo 3 >/proc/sys/vm/drop_caches; cat /mnt/etc/motd; wc -l /mnt/srv/log; umount /mnt && fsck.ext4 -fn "+d.disk+" 2>&1 | tail -n 1")
	if err != nil {
		return err
	}
	d.say("the guest reads everything again, without a master, and checks its file system:")
	d.show(out)
	return nil
}

func (d *demo) powerOff(ctx context.Context) error {
	if err := d.guest.PowerOff(ctx); err != nil {
		return err
	}
	if _, err := d.vc.Await(ctx, volume, "off", func(s *api.VolumeStatus) bool { return s != nil && s.State == api.VolumeOff }); err != nil {
		return err
	}
	i, err := d.vc.StoreInfo(ctx, d.store)
	if err != nil {
		return err
	}
	if len(i.Owner) > 0 && string(i.Owner) != "null" {
		return fmt.Errorf("%s was not closed: owner %s", d.store, i.Owner)
	}
	d.say("the guest is shut down; the engine closed its store and ended")
	return nil
}

// proveClone uses the store's data area as the plain disk that it is, with nothing of virt-cow.
func (d *demo) proveClone(ctx context.Context) error {
	i, err := d.vc.StoreInfo(ctx, d.store)
	if err != nil {
		return err
	}
	plain := fmt.Sprintf("%s?offset=%d", d.store, i.Data)
	check, err := d.host.Run(ctx, "e2fsck", "-fn", plain)
	if err != nil {
		return err
	}
	motd, err := d.host.Command(ctx, "debugfs", "-R", "cat /etc/motd", plain).Output()
	if err != nil {
		return fmt.Errorf("debugfs %s: %w", plain, err)
	}
	if string(motd) != "changed by the guest\n" {
		return fmt.Errorf("the clone's data is not what the guest wrote: %q", motd)
	}
	d.say("without virt-cow: e2fsck and debugfs on the store at offset %d, as store info says:", i.Data)
	d.show(check[strings.LastIndex(strings.TrimSpace(check), "\n")+1:] + string(motd))
	return nil
}
