package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
)

// runBackup measures a full backup of a running clone by the image node, beside what else makes one of the same bytes in a raw file:
// how fast, and with how much CPU. The engine's CPU meanwhile is measured too, and what memory the node takes for a large sparse disk.
func runBackup(ctx context.Context, b *bench, rep *report) error {
	if err := checkRoom(b.dir, 5*int64(b.o.BackupSize)); err != nil {
		return err
	}
	b.log.Info().Msgf("making a master and a clone of %v", b.o.BackupSize)
	c, err := b.newBackedUp(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	group := fmt.Sprintf("full backup of %v: a quarter random, a quarter zeros, half compressible", b.o.BackupSize)
	rows := map[string][2]*row{}
	var order []string
	row2 := func(name string) [2]*row {
		if _, ok := rows[name]; !ok {
			rows[name] = [2]*row{{Part: "backup", Group: group, Name: name, Unit: "MB/s", Higher: true}, {Part: "backup", Group: group, Name: name + ", CPU", Unit: "s/GiB"}}
			order = append(order, name)
			rep.rows = append(rep.rows, rows[name][0], rows[name][1])
		}
		return rows[name]
	}
	engine := &row{Part: "backup", Group: group, Name: "the engine's CPU meanwhile, no guest at work", Unit: "% of a CPU"}
	memory := &row{Part: "backup", Group: group, Name: "the node's memory at most", Unit: "MiB"}
	bytes := float64(b.o.BackupSize)
	for range b.o.Rounds {
		m, err := c.ours(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", oursName, err)
		}
		r := row2(oursName)
		r[0].add(bytes / 1e6 / m.took.Seconds())
		r[1].add(m.cpu.Seconds() / (bytes / (1 << 30)))
		engine.add(100 * m.engine.Seconds() / m.took.Seconds())
		memory.add(m.memory)
		b.log.Info().Msgf("backup, %s: %v, %v of CPU, engine %v, %.0f MiB", oursName, m.took, m.cpu, m.engine, m.memory)
		for _, p := range c.others() {
			if _, err := exec.LookPath(p.program); err != nil {
				b.log.Warn().Msgf("SKIPPED: %s: no %s", p.name, p.program)
				continue
			}
			m, err := c.other(ctx, p)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			r := row2(p.name)
			r[0].add(bytes / 1e6 / m.took.Seconds())
			r[1].add(m.cpu.Seconds() / (bytes / (1 << 30)))
			b.log.Info().Msgf("backup, %s: %v, %v of CPU", p.name, m.took, m.cpu)
		}
	}
	for _, name := range order[1:] {
		for i := range 2 {
			rows[name][i].over(rows[oursName][i])
		}
	}
	rep.rows = append(rep.rows, engine, memory)
	return b.backupSparse(ctx, rep)
}

// backedUp is a running clone, and the same bytes in a raw file.
type backedUp struct {
	b            *bench
	master, flat string
	volume       *instance
	saves        string
	owner        *owner
	engine       *api.Engine
	status       *api.EngineStatus
}

func (b *bench) newBackedUp(ctx context.Context) (c *backedUp, err error) {
	c = &backedUp{b: b, master: filepath.Join(b.dir, "backup-master.raw"), saves: filepath.Join(b.dir, "backup.saves")}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if err := fillMixed(ctx, c.master, int64(b.o.BackupSize), 1); err != nil {
		return c, err
	}
	if err := c.serve(ctx, c.master); err != nil {
		return c, err
	}
	// A third of it is the clone's own.
	over := filepath.Join(b.dir, "backup-over.raw")
	if err := fillMixed(ctx, over, int64(b.o.BackupSize)/3&^(1<<20-1), 2); err != nil {
		return c, err
	}
	defer os.Remove(over)
	dir, err := b.newDir()
	if err != nil {
		return c, err
	}
	c.flat = filepath.Join(dir, "disk.raw")
	uri := "nbd+unix:///?socket=" + c.volume.socket
	return c, errors.Join(command(ctx, []string{"qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", over, uri}),
		command(ctx, []string{"qemu-img", "convert", "-f", "raw", "-O", "raw", uri, c.flat}))
}

// serve serves a fresh clone of a master, with an owner whose address is in its header.
func (c *backedUp) serve(ctx context.Context, master string) (err error) {
	if c.owner, err = c.b.newOwner(); err != nil {
		return err
	}
	if c.volume, err = c.b.startOurs(ctx, master, nil, "--address", c.owner.address); err != nil {
		return err
	}
	c.engine = api.NewEngine(api.ControlPath(c.volume.socket))
	if c.status, err = c.engine.Status(ctx); err != nil {
		return err
	}
	c.owner.engines[c.status.UUID] = c.engine
	return nil
}

func (c *backedUp) close() {
	if c.volume != nil {
		if err := c.volume.close(); err != nil {
			c.b.log.Error().Err(err).Msg("the engine")
		}
	}
	if c.owner != nil {
		if err := c.owner.close(); err != nil {
			c.b.log.Error().Err(err).Msg("the volumes' owner")
		}
	}
	for _, path := range []string{c.master, c.saves} {
		os.Remove(path)
	}
	if c.flat != "" {
		os.RemoveAll(filepath.Dir(c.flat))
	}
}

// backupRun is what one backup took.
type backupRun struct {
	took, cpu, engine time.Duration
	memory            float64 // MiB
}

// ours makes a cut and has it copied by an image node that has an empty archive and copied nothing before.
func (c *backedUp) ours(ctx context.Context) (m backupRun, err error) {
	node, err := c.b.startNode(ctx, c.owner)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, node.close()) }()
	domain := uuid.NewString()
	cut, err := node.reserve(ctx, domain)
	if err != nil {
		return m, err
	}
	os.Remove(c.saves)
	id, err := c.b.addSnapshot(ctx, c.engine, c.status.Store, c.saves, cut)
	if err != nil {
		return m, err
	}
	if err := cutOne(ctx, c.engine, cut); err != nil {
		return m, err
	}
	for _, path := range []string{c.status.Store, c.master} {
		if err := chill(path); err != nil {
			return m, err
		}
	}
	cpu := func() (node2, engine time.Duration, err error) {
		a, err := cpuTime(node.pid())
		if err != nil {
			return 0, 0, err
		}
		b, err := cpuTime(c.volume.pid())
		return a, b, err
	}
	n0, e0, err := cpu()
	if err != nil {
		return m, err
	}
	began := time.Now()
	job, err := node.copy(ctx, api.Manifest{
		Version: 1, Domain: "bench", UUID: domain, Host: nodeName, Cut: cut, CutAt: began.UnixMilli(), Grade: api.GradeCrash, GradeWhy: "a benchmark",
		XML: "<domain/>", InactiveXML: "<domain/>", Disks: []api.ManifestDisk{{
			Target: "vda", Volume: c.status.Volume, UUID: c.status.UUID, Size: c.status.Size, ChunkSize: c.status.ChunkSize, Epoch: c.status.Epoch, Snapshot: id,
			Store: api.Place{Address: c.status.Store, UUID: c.status.UUID}, Saves: api.Place{Address: c.saves, UUID: id},
			Master: &api.Place{Address: c.master},
		}},
	})
	m.took = time.Since(began)
	if err != nil {
		return m, err
	}
	n1, e1, err := cpu()
	if err != nil {
		return m, err
	}
	m.cpu, m.engine = n1-n0, e1-e0
	mem, err := processMemory(node.pid())
	if err != nil {
		return m, err
	}
	m.memory = float64(mem["VmHWM"]) / 1024
	if job.Read+job.Zero < job.Size {
		return m, fmt.Errorf("%d bytes read, %d known to be zeros, of %d", job.Read, job.Zero, job.Size)
	}
	return m, c.dropped(ctx, id)
}

// dropped waits until the snapshot is out of the stack, as the job asks its owner at the end.
func (c *backedUp) dropped(ctx context.Context, id string) error {
	for until := time.Now().Add(time.Minute); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		st, err := c.engine.Status(ctx)
		if err != nil {
			return err
		}
		if len(st.Stack) == 0 {
			return nil
		}
	}
	return fmt.Errorf("snapshot %s is not removed though its job is done", id)
}

// otherBackup is another way to make one.
type otherBackup struct {
	name, program string
	env           []string
	argv          func(from, work string) []string
}

func (c *backedUp) others() []otherBackup {
	self, _ := os.Executable()
	return []otherBackup{
		{"nbdcopy | zstd", "nbdcopy", nil, func(from, work string) []string {
			return []string{"sh", "-ec", `nbdcopy "$1" - | zstd -q -1 -T0 >"$2"`, "sh", from, filepath.Join(work, "out")}
		}},
		{"qemu-img convert -c, zstd", "qemu-img", nil, func(from, work string) []string {
			return []string{"qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", from, filepath.Join(work, "out")}
		}},
		{"kopia of the raw file", self, []string{kopiaOf + "=" + filepath.Dir(c.flat)}, func(from, work string) []string {
			return []string{self, work}
		}},
	}
}

func (c *backedUp) other(ctx context.Context, p otherBackup) (m backupRun, err error) {
	work, err := c.b.newDir()
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := chill(c.flat); err != nil {
		return m, err
	}
	argv := p.argv(c.flat, work)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return m, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	if err := syncDir(work); err != nil { // ours is durable when it is done
		return m, err
	}
	return backupRun{took: time.Since(began), cpu: used(cmd)}, nil
}

// backupSparse has an empty disk of a TiB copied, with little in it, for the memory that the node takes.
func (b *bench) backupSparse(ctx context.Context, rep *report) error {
	sparse, err := b.sparse()
	if err != nil {
		return err
	}
	c := &backedUp{b: b, master: sparse, saves: filepath.Join(b.dir, "sparse.saves")}
	defer c.close()
	if err := c.serve(ctx, sparse); err != nil {
		return err
	}
	if _, err := runFio(ctx, c.volume.socket, load{rw: "write", bs: 1 << 20, depth: 4, span: 64 << 20, once: true, flush: true}); err != nil {
		return err
	}
	m, err := c.ours(ctx)
	if err != nil {
		return fmt.Errorf("a sparse disk: %w", err)
	}
	group := fmt.Sprintf("full backup of a sparse disk of %v", b.o.SparseSize)
	rep.rows = append(rep.rows, &row{Part: "backup", Group: group, Name: "the node's memory at most", Unit: "MiB", Runs: []float64{m.memory}},
		&row{Part: "backup", Group: group, Name: "time", Unit: "s", Runs: []float64{m.took.Seconds()}},
		&row{Part: "backup", Group: group, Name: "CPU", Unit: "s", Runs: []float64{m.cpu.Seconds()}})
	b.log.Info().Msgf("backup of a sparse disk: %v, %v of CPU, %.0f MiB", m.took, m.cpu, m.memory)
	return nil
}

// fillMixed makes a file as disks are: of each 4 MiB one is random, one is a hole, and two are words.
func fillMixed(ctx context.Context, path string, n, seed int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(n); err != nil {
		return err
	}
	rnd := rand.NewChaCha8([32]byte{byte(seed)})
	pick := rand.New(rnd)
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 3+pick.IntN(8))
		rnd.Read(words[i])
	}
	buf := make([]byte, 0, 1<<20+16)
	for at := int64(0); at < n; at += 1 << 20 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch at >> 20 % 4 {
		case 0:
			buf = buf[:1<<20]
			rnd.Read(buf)
		case 1:
			continue
		default:
			for buf = buf[:0]; len(buf) < 1<<20; {
				buf = append(buf, words[pick.IntN(len(words))]...)
			}
		}
		if _, err := f.WriteAt(buf[:min(1<<20, n-at)], at); err != nil {
			return err
		}
	}
	return f.Sync()
}
