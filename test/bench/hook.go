package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// hookRuns is how often each hook is run.
const hookRuns = 200

// pythonHook does what hooks written in Python do first: it reads the domain.
const pythonHook = "import sys, xml.etree.ElementTree as e; e.parse(sys.stdin)"

// runHook measures what libvirt's hook costs the start of a guest that has none of our volumes, beside other hooks: the
// time of the process and its children, and their CPU.
func runHook(ctx context.Context, b *bench, rep *report) error {
	bin, err := b.newDir()
	if err != nil {
		return err
	}
	if err := os.Symlink(b.o.Bin, filepath.Join(bin, "virt-cow")); err != nil {
		return err
	}
	script, err := filepath.Abs("hooks/qemu")
	if err != nil {
		return err
	}
	if _, err := os.Stat(script); err != nil {
		return fmt.Errorf("run the benchmark where the source is: %w", err)
	}
	xml := foreignDomain()
	group := fmt.Sprintf("hook of a foreign domain, prepare begin, %.1f KiB of XML", float64(len(xml))/1024)
	type hook struct {
		argv      []string
		wall, cpu *row
	}
	var hooks []hook
	add := func(name string, argv ...string) {
		h := hook{append(argv, "web1", "prepare", "begin", "-"),
			&row{Part: "hook", Group: group, Name: name, Unit: "ms"}, &row{Part: "hook", Group: group, Name: name + ", CPU", Unit: "ms"}}
		hooks = append(hooks, h)
		rep.rows = append(rep.rows, h.wall, h.cpu)
	}
	add("virt-cow", script)
	add("virt-cow without its script", b.o.Bin, "hook")
	add("/bin/true", "/bin/true")
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		if path, err := exec.LookPath(python); err == nil {
			add("python3 that reads the XML", path, "-c", pythonHook)
			break
		}
	}
	env := append(b.env(), "PATH="+bin+":"+os.Getenv("PATH"))
	for range hookRuns {
		for _, h := range hooks {
			cmd := exec.CommandContext(ctx, h.argv[0], h.argv[1:]...)
			cmd.Env = append(os.Environ(), env...)
			cmd.Stdin = bytes.NewReader(xml)
			start := time.Now()
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %w: %s", strings.Join(h.argv, " "), err, out)
			}
			h.wall.add(float64(time.Since(start).Microseconds()) / 1e3)
			h.cpu.add(float64((cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Microseconds()) / 1e3)
		}
	}
	for _, h := range hooks[1:] {
		h.wall.over(hooks[0].wall)
		h.cpu.over(hooks[0].cpu)
	}
	return nil
}

// foreignDomain is the XML of a domain with a dozen disks, as libvirt writes it.
func foreignDomain() []byte {
	var b bytes.Buffer
	b.WriteString(`<domain type='kvm' id='1'>
  <name>web1</name>
  <uuid>4dea22b3-1d52-48f3-a516-782e98ab3fa0</uuid>
  <memory unit='KiB'>4194304</memory>
  <vcpu placement='static'>2</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
`)
	for i := range 12 {
		fmt.Fprintf(&b, `    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
      <source file='/var/lib/libvirt/images/web1-%[1]d.qcow2' index='%[1]d'/>
      <backingStore/>
      <target dev='vd%[2]c' bus='virtio'/>
      <alias name='virtio-disk%[1]d'/>
      <address type='pci' domain='0x0000' bus='0x%02[1]x' slot='0x00' function='0x0'/>
    </disk>
    <controller type='pci' index='%[1]d' model='pcie-root-port'>
      <model name='pcie-root-port'/>
      <target chassis='%[1]d' port='0x%[1]x'/>
      <alias name='pci.%[1]d'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0' multifunction='on'/>
    </controller>
`, i+1, 'a'+i)
	}
	b.WriteString("  </devices>\n</domain>\n")
	return b.Bytes()
}
