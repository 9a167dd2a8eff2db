package libvirtxtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/test/lab"
)

// frozenGuest is a guest with an agent, and one file system that can be frozen.
type frozenGuest struct {
	*lab.Guest
	t *testing.T
	d libvirtx.Domain
}

// bootFrozen boots one.
func (r *rig) bootFrozen(t *testing.T, name string) frozenGuest {
	t.Helper()
	image := filepath.Join(r.h.Dir, name+".raw")
	if err := errors.Join(os.WriteFile(image, nil, 0o644), os.Truncate(image, 16<<20)); err != nil {
		t.Fatal(err)
	}
	g, d := r.define(t, lab.GuestConfig{Name: name, Agent: true, Devices: fmt.Sprintf(
		`<disk type='file'><driver name='qemu' type='raw'/><source file='%s'/><target dev='vda' bus='virtio'/></disk>`, image)})
	if err := g.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := frozenGuest{g, t, d}
	f.prepare(r.conn(t))
	return f
}

// prepare makes the file system, and waits for the agent: the lab's own answers before it.
func (g frozenGuest) prepare(c libvirtx.Conn) {
	g.t.Helper()
	g.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt")
	g.is(c, false)
}

// run runs a command in the guest.
func (g frozenGuest) run(command string) string {
	g.t.Helper()
	out, err := g.Run(g.t.Context(), command)
	if err != nil {
		g.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// hook has the agent's hook be this script.
func (g frozenGuest) hook(script string) {
	g.t.Helper()
	g.run(fmt.Sprintf("printf '#!/bin/sh\n%s\n' >%s.new && chmod +x %[2]s.new && mv %[2]s.new %[2]s", script, lab.AgentHook))
}

// is waits until the agent says so.
func (g frozenGuest) is(c libvirtx.Conn, frozen bool) {
	g.t.Helper()
	eventually(g.t, "the agent's status", func() bool { is, err := c.Frozen(g.t.Context(), g.d); return err == nil && is == frozen }, frozen)
}

// freezes freezes and thaws, and expects one file system. What the guest writes meanwhile waits.
func (g frozenGuest) freezes(c libvirtx.Conn) {
	g.t.Helper()
	ctx := g.t.Context()
	if n, err := c.Freeze(ctx, g.d); n != 1 || err != nil {
		g.t.Fatal(n, err)
	}
	g.is(c, true)
	g.run("rm -f /run/wrote; (echo x >/mnt/x; sync; echo x >/run/wrote) >/dev/null 2>&1 &")
	if out := g.run("sleep 1; ls /run"); strings.Contains(out, "wrote") {
		g.t.Fatal("written to a frozen file system")
	}
	if n, err := c.Thaw(ctx, g.d); n != 1 || err != nil {
		g.t.Fatal(n, err)
	}
	g.run("while [ ! -e /run/wrote ]; do sleep 0.1; done")
	g.is(c, false)
}

// soon is a context that leaves the agent two seconds or so.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// freeze: a guest is frozen and thawed, whatever becomes of its agent meanwhile.
func (r *rig) freeze(t *testing.T) {
	ctx, c := t.Context(), r.conn(t)
	g := r.bootFrozen(t, "frozen")
	g.freezes(c)
	if n, err := c.Thaw(ctx, g.d); n != 0 || err != nil {
		t.Fatal("not frozen, and thawed:", n, err)
	}
	t.Run("frozen already", func(t *testing.T) { g.t = t; g.again(c) })
	t.Run("hooks", func(t *testing.T) { g.t = t; g.hooks(c) })
	t.Run("a slow hook", func(t *testing.T) { g.t = t; g.slowHook(c) })
	t.Run("an agent that dies", func(t *testing.T) { g.t = t; g.dies(c) })
	t.Run("an agent that hangs", func(t *testing.T) { g.t = t; g.hangs(c) })
	t.Run("a guest that is paused or off", func(t *testing.T) { r.pausedFrozen(t, g) })
	r.virsh(t, "undefine", g.Name)
}

func (g frozenGuest) again(c libvirtx.Conn) {
	ctx := g.t.Context()
	if _, err := c.Freeze(ctx, g.d); err != nil {
		g.t.Fatal(err)
	}
	if _, err := c.Freeze(ctx, g.d); !errors.Is(err, libvirtx.ErrFrozen) || !strings.Contains(err.Error(), g.Name) {
		g.t.Fatal(err)
	}
	if n, err := c.Thaw(ctx, g.d); n != 1 || err != nil {
		g.t.Fatal(n, err)
	}
	g.run("umount /mnt")
	if n, err := c.Freeze(ctx, g.d); n != 0 || err != nil {
		g.t.Fatal("a guest without a file system:", n, err)
	}
	g.run("mount /dev/vda /mnt")
}

// hooks: one that fails before the freeze prevents it, and a thaw calls it all the same; one that fails after the thaw does not.
func (g frozenGuest) hooks(c libvirtx.Conn) {
	ctx := g.t.Context()
	g.hook("echo $1 >>/run/hooked; [ $1 = thaw ]")
	if _, err := c.Freeze(ctx, g.d); !errors.Is(err, libvirtx.ErrHook) {
		g.t.Fatal(err)
	}
	g.is(c, false)
	if n, err := c.Thaw(ctx, g.d); n != 0 || err != nil {
		g.t.Fatal(n, err)
	}
	if called := strings.Fields(g.run("cat /run/hooked")); !slices.Equal(called, []string{"freeze", "thaw"}) {
		g.t.Fatal("the hook was called with", called)
	}
	g.hook("[ $1 = freeze ]")
	if n, err := c.Freeze(ctx, g.d); n != 1 || err != nil {
		g.t.Fatal(n, err)
	}
	if _, err := c.Thaw(ctx, g.d); !errors.Is(err, libvirtx.ErrHook) {
		g.t.Fatal(err)
	}
	g.is(c, false)
	g.run("rm " + lab.AgentHook + "; echo y >/mnt/y; sync")
}

// givesUp freezes with an agent that does not answer in time.
func (g frozenGuest) givesUp(c libvirtx.Conn) {
	g.t.Helper()
	_, err := c.Freeze(soon(g.t), g.d)
	for range 4 { // on a busy machine libvirt's own word about the agent may come too late
		if errors.Is(err, libvirtx.ErrNoAnswer) {
			_, err = c.Freeze(soon(g.t), g.d)
		}
	}
	if !errors.Is(err, libvirtx.ErrAgentHangs) {
		g.t.Fatal(err)
	}
}

// slowHook: a freeze that was given up takes effect all the same, and a thaw that is tried until it succeeds undoes it.
func (g frozenGuest) slowHook(c libvirtx.Conn) {
	g.hook("[ $1 = thaw ] || while [ ! -e /run/go ]; do sleep 0.1; done")
	g.givesUp(c)
	g.run("touch /run/go")
	g.thaws(c)
	g.run("rm /run/go " + lab.AgentHook + "; echo y >/mnt/y; sync")
}

// thaws tries until a thaw succeeds, and expects that it thaws what a freeze that was given up froze.
func (g frozenGuest) thaws(c libvirtx.Conn) {
	g.t.Helper()
	eventually(g.t, "the thaw", func() bool {
		n, err := c.Thaw(g.t.Context(), g.d)
		if err == nil && n != 1 {
			g.t.Fatal("thawed", n, "file systems: the freeze was no longer under way")
		}
		if err != nil && !errors.Is(err, libvirtx.ErrAgentHangs) && !errors.Is(err, libvirtx.ErrNoAgent) {
			g.t.Fatal(err)
		}
		return err == nil
	})
	g.is(c, false)
}

// dies: the file systems stay frozen, and the next agent knows.
func (g frozenGuest) dies(c libvirtx.Conn) {
	ctx := g.t.Context()
	if _, err := c.Freeze(ctx, g.d); err != nil {
		g.t.Fatal(err)
	}
	g.run("kill -KILL $(cat /run/qemu-ga.pid)")
	eventually(g.t, "its end", func() bool { _, err := c.Thaw(ctx, g.d); return errors.Is(err, libvirtx.ErrNoAgent) })
	for name, f := range map[string]func() error{
		"freeze": func() error { _, err := c.Freeze(ctx, g.d); return err },
		"thaw":   func() error { _, err := c.Thaw(ctx, g.d); return err },
		"frozen": func() error { _, err := c.Frozen(ctx, g.d); return err },
	} {
		if err := f(); !errors.Is(err, libvirtx.ErrNoAgent) || !strings.Contains(err.Error(), g.Name) {
			g.t.Errorf("%s: %v", name, err)
		}
	}
	g.run("start-agent")
	g.is(c, true)
	g.thaws(c)

	g.hook("kill -KILL $(cat /run/qemu-ga.pid)") // while the freeze is under way
	if _, err := c.Freeze(ctx, g.d); !errors.Is(err, libvirtx.ErrNoAgent) {
		g.t.Fatal(err)
	}
	g.run("rm " + lab.AgentHook + "; start-agent")
	g.is(c, false)
	g.freezes(c)
}

// hangs: a freeze that an agent gets late takes effect late.
func (g frozenGuest) hangs(c libvirtx.Conn) {
	g.run("kill -STOP $(cat /run/qemu-ga.pid)")
	g.givesUp(c)
	if _, err := c.Thaw(g.t.Context(), g.d); !errors.Is(err, libvirtx.ErrAgentHangs) {
		g.t.Fatal(err)
	}
	g.run("kill -CONT $(cat /run/qemu-ga.pid)")
	g.is(c, true)
	g.thaws(c)
}

// pausedFrozen: a guest that does not run is not asked, and is frozen still when it goes on.
func (r *rig) pausedFrozen(t *testing.T, g frozenGuest) {
	g.t = t
	ctx, c := t.Context(), r.conn(t)
	if _, err := c.Freeze(ctx, g.d); err != nil {
		t.Fatal(err)
	}
	r.virsh(t, "suspend", g.Name)
	if _, err := c.Thaw(ctx, g.d); !errors.Is(err, libvirtx.ErrNotRunning) {
		t.Fatal(err)
	}
	if err := c.Resume(ctx, g.d); err != nil {
		t.Fatal(err)
	}
	g.is(c, true)
	g.thaws(c)
	if err := g.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Freeze(ctx, g.d); !errors.Is(err, libvirtx.ErrNotRunning) || !strings.Contains(err.Error(), g.Name) {
		t.Fatal(err)
	}
}

// noAgent: a domain without the channel, and one whose guest has nobody at it.
func (r *rig) noAgent(t *testing.T) {
	ctx, c := t.Context(), r.conn(t)
	for name, devices := range map[string]string{
		"no-channel": "", "nobody": `<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>`,
	} {
		g, d := r.define(t, lab.GuestConfig{Name: name, Devices: devices})
		if err := g.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Freeze(ctx, d); !errors.Is(err, libvirtx.ErrNoAgent) || !strings.Contains(err.Error(), name) {
			t.Error(name, err)
		}
		if _, err := c.Thaw(ctx, d); !errors.Is(err, libvirtx.ErrNoAgent) {
			t.Error(name, err)
		}
		if err := g.Destroy(ctx); err != nil {
			t.Fatal(err)
		}
		r.virsh(t, "undefine", name)
	}
}

// FrozenMove: a guest that is frozen moves to another host, and is thawed there.
func FrozenMove(t *testing.T, dial Dial) {
	ctx := t.Context()
	s := lab.SiteFor(t, lab.SiteConfig{Host: lab.Config{Log: t.Output()}})
	disk, err := s.NewDisk(lab.DiskConfig{Name: "moves", Size: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	from, to := s.Hosts[0], s.Hosts[1]
	r := keep(t, dial, from, patient)
	g, d := r.define(t, lab.GuestConfig{Name: "moves", Agent: true, Devices: fmt.Sprintf(
		`<disk type='block'><driver name='qemu' type='raw' cache='none'/><source dev='%s'/><target dev='vda' bus='virtio'/></disk>`, disk.Path)})
	if err := g.Boot(ctx); err != nil {
		t.Fatal(err)
	}
	f := frozenGuest{g, t, d}
	f.prepare(r.conn(t))
	if n, err := r.conn(t).Freeze(ctx, d); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if err := g.HurryMigration(ctx); err != nil {
		t.Fatal(err)
	}
	if out, err := g.Migrate(ctx, to); err != nil {
		t.Fatal(out, err)
	}
	there := keep(t, dial, to, patient)
	if _, err := r.conn(t).Thaw(ctx, d); !errors.Is(err, libvirtx.ErrNotRunning) && !errors.Is(err, libvirtx.ErrNoDomain) {
		t.Fatal("thawed on the host it left:", err)
	}
	f.is(there.conn(t), true)
	f.thaws(there.conn(t))
}
