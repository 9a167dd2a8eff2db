package lab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/template"
	"time"
)

// GuestConfig says what a guest is to be.
type GuestConfig struct {
	Name     string
	Metadata string // XML put inside <metadata>
	Devices  string // XML put inside <devices>
	OS       string // XML put inside <os>, such as UEFI's
	Ports    int    // free PCI ports for hot-plug, 0 for six, -1 for none
	Agent    bool   // with QEMU's guest agent in it, and its channel
}

// UEFI is a guest's firmware, and where it keeps its variables: this file of the host.
func UEFI(nvram string) string {
	const firmware = "/usr/share/OVMF/OVMF_"
	return "<loader readonly='yes' type='pflash'>" + firmware + "CODE_4M.fd</loader><nvram template='" + firmware + "VARS_4M.fd'>" + nvram + "</nvram>"
}

// Guest is a domain defined on a host. On a site it may move: its methods are about the host it is on, by what the
// Guest knows (MovedTo).
type Guest struct {
	Name string

	copied string // the guest that it is a copy of, whose consoles its definition has; "" for none

	mu      sync.Mutex
	host    *Host
	console *console      // nil while nobody is connected
	moving  chan struct{} // closed once it is known where a guest that may be moving is; nil if it is not
	moves   int
	nextID  uint64 // of a request to its agent
}

// consoles are the name that its consoles go by.
func (g *Guest) consoles() string { return cmp.Or(g.copied, g.Name) }

// Host is where the guest is.
func (g *Guest) Host() *Host {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.host
}

// guestUp bounds a boot under TCG on a busy machine.
const guestUp = 3 * time.Minute

var domainXML = template.Must(template.New("domain").Parse(`<domain type='qemu'>
  <name>{{.Name}}</name>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <metadata>{{.Metadata}}</metadata>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    {{.OS}}
    <kernel>{{.Kernel}}</kernel>
    <initrd>{{.Initrd}}</initrd>
    <cmdline>console=ttyS0 quiet oops=panic panic=-1 random.trust_cpu=on</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_poweroff>destroy</on_poweroff>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='pci' model='pcie-root'/>
    {{range .PortList}}<controller type='pci' model='pcie-root-port'/>
    {{end}}<controller type='usb' model='none'/>
    <serial type='file'><source path='{{.Log}}'{{if .Append}} append='on'{{end}}/><target type='isa-serial' port='0'/></serial>
    <serial type='unix'><source mode='bind' path='{{.Serial}}'/><target type='isa-serial' port='1'/></serial>
    <memballoon model='none'/>
    {{.Devices}}
  </devices>
</domain>
`))

// Define defines a domain that boots the lab's kernel and initramfs. Start it with Start or with virsh.
func (h *Host) Define(ctx context.Context, c GuestConfig) (*Guest, error) {
	k, err := findKernel()
	if err != nil {
		return nil, err
	}
	dir := h.Dir
	if h.site != nil { // the same on all its hosts
		dir = h.site.Dir
	}
	initrd := filepath.Join(dir, "initramfs")
	if c.Agent {
		initrd += "-agent"
		c.Devices += agentChannel
	}
	if err := makeOnce(initrd, func() ([]byte, error) { return initramfs(k, c.Agent) }); err != nil {
		return nil, err
	}
	image := k.image
	if h.qemuUser != "" { // the cache is in somebody's home, and libvirt gives a guest's files to QEMU's user
		image = filepath.Join(dir, "vmlinuz")
		if err := makeOnce(image, func() ([]byte, error) { return os.ReadFile(k.image) }); err != nil {
			return nil, err
		}
	}
	switch {
	case c.Ports == 0:
		c.Ports = 6
	case c.Ports < 0:
		c.Ports = 0
	}
	g := &Guest{Name: c.Name, host: h}
	var b bytes.Buffer
	if err := domainXML.Execute(&b, map[string]any{
		"Name": c.Name, "Metadata": c.Metadata, "Devices": c.Devices, "OS": c.OS, "PortList": make([]int, c.Ports),
		"Kernel": image, "Initrd": initrd, "Log": g.logPath(), "Append": h.site != nil, "Serial": g.serialPath(),
	}); err != nil {
		return nil, err
	}
	if err := h.DefineXML(ctx, b.String()); err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.guests = append(h.guests, g)
	h.mu.Unlock()
	return g, nil
}

// CopyOf is a domain of this host that was defined as a copy of a guest of another one, or in its place: it has the paths of that
// one's consoles, so no two of them may run on one host.
func (h *Host) CopyOf(g *Guest, name string) *Guest {
	return &Guest{Name: name, copied: g.Name, host: h}
}

// makeOnce makes a file that is not there yet.
func makeOnce(path string, content func() ([]byte, error)) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	b, err := content()
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// DefineXML defines any domain.
func (h *Host) DefineXML(ctx context.Context, xml string) error {
	f, err := os.CreateTemp(h.Dir, "domain-*.xml")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(xml)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	_, err = h.Virsh(ctx, "define", f.Name())
	return err
}

// impatient are libvirt's words for what a busy machine has not done in time: a TPM's emulator has one second to come up, a QEMU that
// was killed five to end. Those of ended come when it has ended since.
var (
	impatient = []string{"swtpm socket did not show up", "Failed to terminate process"}
	ended     = []string{"domain is not running", "failed to get domain"}
)

// Virsh runs virsh on the host and returns what it printed, trimmed. An error quotes what it complained of. What libvirt was only
// too impatient for is tried again.
func (h *Host) Virsh(ctx context.Context, args ...string) (string, error) {
	out, err := h.virsh(ctx, args...)
	for deadline := time.Now().Add(stateChange); says(err, impatient) && ctx.Err() == nil && time.Now().Before(deadline); {
		if out, err = h.virsh(ctx, args...); args[0] == "destroy" && says(err, ended) {
			err = nil
		}
	}
	return out, err
}

func says(err error, words []string) bool {
	return err != nil && slices.ContainsFunc(words, func(s string) bool { return strings.Contains(err.Error(), s) })
}

func (h *Host) virsh(ctx context.Context, args ...string) (string, error) {
	var stderr strings.Builder
	cmd := h.Command(ctx, "virsh", append([]string{"-c", "qemu:///system"}, args...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("virsh %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), err
}

// logPath is the console's log, inside.
func (g *Guest) logPath() string {
	if s := g.Host().site; s != nil {
		return filepath.Join(s.consoles(), g.consoles()+".log")
	}
	return "/var/log/libvirt/qemu/" + g.consoles() + "-console.log"
}

// ConsolePath is the file, outside, that has what the guest's kernel, init and checkers said: since the domain was
// started last, or on a site since it was defined, wherever it ran.
func (g *Guest) ConsolePath() string {
	h := g.Host()
	if h.site != nil {
		return g.logPath()
	}
	return filepath.Join(h.Dir, "log", "libvirt", "qemu", g.consoles()+"-console.log")
}

func (g *Guest) serialPath() string { return "/run/lab/" + g.consoles() + ".serial" }

// Boot starts the domain and waits until its agent answers.
func (g *Guest) Boot(ctx context.Context) error {
	if err := g.Start(ctx); err != nil {
		return err
	}
	return g.WaitUp(ctx)
}

// Start starts the domain with virsh, and does not wait for it to be up.
func (g *Guest) Start(ctx context.Context) error {
	_, err := g.Host().Virsh(ctx, "start", g.Name)
	return err
}

// Absent is the state of a guest that moved away, or that ended where it was not defined.
const Absent = "absent"

// State is the domain's state in virsh's words: running, paused, shut off. Or it is Absent from the host it was on.
func (g *Guest) State(ctx context.Context) (string, error) {
	s, err := g.Host().Virsh(ctx, "domstate", g.Name)
	if err != nil && (strings.Contains(err.Error(), "Domain not found") || strings.Contains(err.Error(), "failed to get domain")) {
		return Absent, nil
	}
	return s, err
}

// Destroy ends the domain as if its power was cut.
func (g *Guest) Destroy(ctx context.Context) error {
	g.hangUp()
	_, err := g.Host().Virsh(ctx, "destroy", g.Name)
	return err
}

// PowerOff has the guest shut itself down and waits until the domain is off.
func (g *Guest) PowerOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, guestUp)
	defer cancel()
	// On a busy machine it may be off before it has answered.
	if _, err := g.Run(ctx, "sync; (sleep 1; poweroff -f) >/dev/null 2>&1 &"); err != nil && !errors.Is(err, errHungUp) {
		return err
	}
	for {
		s, err := g.State(ctx)
		if err != nil {
			return err
		}
		if s == "shut off" || s == Absent {
			g.hangUp()
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("guest %s does not shut down: it is %s\n%s", g.Name, s, g.ConsoleLog())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// ConsoleLog is the end of what the guest's kernel and init said.
func (g *Guest) ConsoleLog() string {
	b, err := os.ReadFile(g.ConsolePath())
	if err != nil {
		return err.Error()
	}
	if len(b) > 4096 {
		b = b[len(b)-4096:]
	}
	return string(b)
}

// Disk waits until the guest sees a virtio disk with this serial number and returns its device: the guest
// names disks as it finds them, whatever the target in the domain's XML.
func (g *Guest) Disk(ctx context.Context, serial string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, guestUp)
	defer cancel()
	out, err := g.Run(ctx, `while :; do for s in /sys/block/*/serial; do
if [ "$(cat "$s" 2>/dev/null)" = `+serial+` ]; then d=${s#/sys/block/}; echo /dev/${d%/serial}; exit; fi
done; sleep 0.2; done`)
	return strings.TrimSpace(out), err
}
