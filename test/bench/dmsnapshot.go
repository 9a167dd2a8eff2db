package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/nbd"
	"github.com/virt-cow/virt-cow/test/lab"
)

// insideRun, in the environment, makes this program the one that measures inside of the emulated machine.
const insideRun = "VIRT_COW_BENCH_INSIDE"

const (
	dmDisk   = 64 << 20         // bytes
	dmEnded  = 20 * time.Minute // bounds the machine
	dmResult = "RESULT "        // begins a line that is one
)

var dmModules = []string{"virtio_pci", "virtio_blk", "crc32c_generic", "dm_mod", "dm_snapshot"}

const dmInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /etc /var/run
/bin/busybox --install -s /bin
export PATH=/sbin:/bin HOME=/ ` + insideRun + `=1
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp; mount -t tmpfs run /run
mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm
while read -r m; do insmod "$m" || echo "insmod $m failed"; done </modules
echo 1 >/proc/sys/kernel/panic
echo 12345678123456781234567812345678 >/etc/machine-id
stty -F /dev/ttyS1 raw
cd /tmp
/bin/bench %d %v </dev/null >/dev/ttyS1 2>&1
echo "ended with $?"
poweroff -f
`

// runDMSnapshot compares with the kernel's dm-snapshot, both in one emulated machine, as this machine's kernel need not have it: an engine over
// NBD and a device mapper's disk, on the same two virtual disks. Emulated, nothing but ratios mean anything.
func runDMSnapshot(ctx context.Context, b *bench, rep *report) error {
	for _, p := range []string{"qemu-system-x86_64", "dmsetup", "busybox", "ldd"} {
		if _, err := exec.LookPath(p); err != nil {
			b.log.Warn().Msgf("SKIPPED: dm-snapshot: no %s", p)
			return nil
		}
	}
	dir, err := b.newDir()
	if err != nil {
		return err
	}
	kernel, initramfs, err := b.dmImage(dir)
	if errors.Is(err, lab.ErrMissing) {
		b.log.Warn().Msgf("SKIPPED: dm-snapshot: %v", err)
		return nil
	} else if err != nil {
		return err
	}
	argv := []string{"-machine", "q35,accel=tcg", "-smp", "2", "-m", "1024", "-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", kernel, "-initrd", initramfs, "-append", "console=ttyS0 loglevel=4 panic=1 oops=panic"}
	for i, size := range []int64{dmDisk, dmDisk + 64<<20} {
		path := filepath.Join(dir, fmt.Sprint("disk", i))
		if err := fill(ctx, path, size); err != nil {
			return err
		}
		argv = append(argv, "-drive", "if=virtio,format=raw,cache=none,aio=io_uring,file="+path)
	}
	console := filepath.Join(dir, "console")
	argv = append(argv, "-serial", "file:"+console, "-serial", "stdio")
	ctx, cancel := context.WithTimeout(ctx, dmEnded)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", argv...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	b.log.Info().Msg("dm-snapshot and an engine in an emulated machine")
	var stderr tail
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("the machine: %w: %s", err, &stderr)
	}
	if text, err := os.ReadFile(console); err != nil || !bytes.Contains(text, []byte("ended with 0")) {
		return fmt.Errorf("the machine did not end well (%w): %s: %s", err, out, text[max(0, len(text)-2000):])
	}
	return dmReport(rep, out)
}

func (b *bench) dmImage(dir string) (kernel, initramfs string, err error) {
	i, err := lab.NewImage(fmt.Sprintf(dmInit, b.o.Rounds, b.o.Runtime))
	if err != nil {
		return "", "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", "", err
	}
	initramfs = filepath.Join(dir, "initramfs")
	return i.Kernel, initramfs, errors.Join(i.Program("/bin/busybox", "busybox", ""), i.Program("/sbin/dmsetup", "dmsetup", ""),
		i.Program("/bin/bench", self, ""), i.Program("/bin/virt-cow", b.o.Bin, ""), i.Modules(dmModules...), i.WriteInitramfs(initramfs))
}

// dmSample is one load in one state.
type dmSample struct {
	Peer, Load, State string
	IOPS              float64
}

// dmReport reads what was measured inside.
func dmReport(rep *report, out []byte) error {
	rows := map[string]*row{}
	var samples []dmSample
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		text, is := strings.CutPrefix(strings.TrimSpace(sc.Text()), dmResult)
		if !is {
			continue
		}
		var s dmSample
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
		key := s.Peer + s.Load + s.State
		if rows[key] == nil {
			rows[key] = &row{Part: "dmsnapshot", Group: "beside dm-snapshot, both emulated: 4k random writes, " + s.Load, Name: s.Peer + " " + s.State, Unit: "IOPS", Higher: true}
			rep.rows = append(rep.rows, rows[key])
			samples = append(samples, s)
		}
		rows[key].add(s.IOPS)
	}
	if len(samples) == 0 {
		return fmt.Errorf("nothing was measured: %s", out)
	}
	for _, s := range samples {
		r := rows[s.Peer+s.Load+s.State]
		if s.State != "none" {
			r.pairedWith(rows[s.Peer+s.Load+"none"], s.State+"/none")
		}
	}
	return nil
}

// inside is what runs in the emulated machine: so many rounds, each load for so long at most.
func inside(args []string) error {
	ctx := context.Background()
	var rounds int
	if _, err := fmt.Sscan(args[0], &rounds); err != nil {
		return err
	}
	budget, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	b := &bench{o: &options{Bin: "/bin/virt-cow"}, log: zerolog.Nop(), dir: "/tmp", shm: "/run"}
	var luns [2]*lun
	for i, path := range []string{"/dev/vda", "/dev/vdb"} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		luns[i] = &lun{File: f}
	}
	for round := range rounds {
		for _, depth := range []int{1, 16} {
			for _, unit := range []int64{snapshotUnit, blockSize} {
				offs := spreads(dmDisk, unit)
				name := fmt.Sprintf("one in each 64K, depth %d", depth)
				if unit == blockSize {
					name = fmt.Sprintf("all of a part, depth %d", depth)
					offs = spreads(dmDisk/8, blockSize)
				}
				peers := []func(context.Context, *bench, [2]*lun) (insidePeer, error){insideOurs, insideDM}
				for i := range peers {
					if err := insideRound(ctx, b, luns, peers[(i+round)%2], name, offs, depth, budget); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// insidePeer is a disk that can have a snapshot.
type insidePeer struct {
	name             string
	disk             func() (blockdev.Device, error)
	snapshot, remove func() error
}

func insideRound(ctx context.Context, b *bench, luns [2]*lun, make func(context.Context, *bench, [2]*lun) (insidePeer, error), load string, offs []int64, depth int, budget time.Duration) error {
	p, err := make(ctx, b, luns)
	if err != nil {
		return err
	}
	for _, state := range snapshotStates {
		if state == "fresh" {
			if err := p.snapshot(); err != nil {
				return fmt.Errorf("%s: snapshot: %w", p.name, err)
			}
		}
		d, err := p.disk()
		if err != nil {
			return err
		}
		if state == "steady" {
			err = overwriteAll(d)
		}
		iops := 0.0
		if err == nil {
			iops, err = insideLoad(d, offs, depth, budget)
		}
		if err := errors.Join(err, d.Close()); err != nil {
			return fmt.Errorf("%s, %s: %w", p.name, state, err)
		}
		text, err := json.Marshal(dmSample{p.name, load, state, iops})
		if err != nil {
			return err
		}
		fmt.Println(dmResult + string(text))
	}
	return p.remove()
}

// overwriteAll has all of a disk saved.
func overwriteAll(d blockdev.Device) error {
	p := blockdev.Alloc(1 << 20)
	defer blockdev.Free(p)
	for off := int64(0); off < dmDisk; off += int64(len(p)) {
		if _, err := d.WriteAt(p, off); err != nil {
			return err
		}
	}
	return nil
}

// insideLoad writes 4 KiB at each offset, so many at a time.
func insideLoad(d blockdev.Device, offs []int64, depth int, budget time.Duration) (iops float64, err error) {
	next, failed := make(chan int64), make(chan error, depth)
	for range depth {
		go func() {
			p := blockdev.Alloc(blockSize)
			defer blockdev.Free(p)
			var err error
			for off := range next {
				if _, werr := d.WriteAt(p, off); werr != nil {
					err = werr
				}
			}
			failed <- err
		}()
	}
	began, n := time.Now(), 0
	for ; n < len(offs) && time.Since(began) < budget; n++ {
		next <- offs[n]
	}
	close(next)
	for range depth {
		err = errors.Join(err, <-failed)
	}
	return float64(n) / time.Since(began).Seconds(), err
}

func insideOurs(ctx context.Context, b *bench, luns [2]*lun) (p insidePeer, err error) {
	dir, err := b.newDir()
	if err != nil {
		return p, err
	}
	o := &ourOrigin{originDisks: &originDisks{disk: luns[0], kept: luns[1]}, b: b, state: storePath(dir)}
	if err := command(ctx, []string{b.o.Bin, "store", "create", "--raw", "/dev/vda", "--force-raw", o.state}, b.env()...); err != nil {
		return p, err
	}
	socket := filepath.Join(dir, "n.sock")
	if o.server, err = startServer(ctx, []string{b.o.Bin, "serve", "--socket", socket, o.state}, b.env(), socket); err != nil {
		return p, err
	}
	o.engine = api.NewEngine(api.ControlPath(socket))
	return insidePeer{
		name:     oursName,
		disk:     func() (blockdev.Device, error) { return nbd.Dial(ctx, "nbd+unix:///?socket="+socket, nbd.Options{}) },
		snapshot: func() error { return o.snapshot(ctx) },
		remove:   func() error { return errors.Join(o.drop(ctx), o.stop()) },
	}, nil
}

// insideDM is the kernel's, in chunks of 4 KiB, kept on the disk as ours: what it has saved survives a power cut.
func insideDM(ctx context.Context, b *bench, _ [2]*lun) (insidePeer, error) {
	sectors := int64(dmDisk / 512)
	dm := func(args ...string) error {
		return command(ctx, append([]string{"dmsetup", "--noudevrules", "--noudevsync"}, args...))
	}
	table := func(format string, a ...any) string {
		return fmt.Sprintf("0 %d "+format, append([]any{sectors}, a...)...)
	}
	node := func(name string) string { // there is no udev that makes links
		out, err := exec.CommandContext(ctx, "dmsetup", "info", "-c", "--noheadings", "-o", "blkdevname", name).Output()
		if err != nil {
			return name
		}
		return "/dev/" + strings.TrimSpace(string(out))
	}
	err := dm("create", "disk", "--table", table("linear /dev/vda 0"))
	return insidePeer{
		name: "dm-snapshot",
		disk: func() (blockdev.Device, error) {
			return blockdev.OpenFile(ctx, node("disk"), blockdev.FileOptions{Direct: true})
		},
		snapshot: func() error {
			if err := errors.Join(zeroBeginning("/dev/vdb"), dm("suspend", "disk"),
				dm("create", "real", "--table", table("linear /dev/vda 0"))); err != nil {
				return err
			}
			return errors.Join(dm("create", "snap", "--table", table("snapshot %s /dev/vdb P 8", node("real"))),
				dm("load", "disk", "--table", table("snapshot-origin %s", node("real"))), dm("resume", "disk"))
		},
		remove: func() error {
			return errors.Join(dm("remove", "disk"), dm("remove", "snap"), dm("remove", "real"))
		},
	}, err
}

// zeroBeginning makes a device one that holds no snapshot.
func zeroBeginning(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 64<<10))
	return errors.Join(err, f.Sync(), f.Close())
}
