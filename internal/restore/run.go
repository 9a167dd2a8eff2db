// Package restore brings a domain back out of a backup: its disks, its state, then its definition.
//
// The order is what keeps a half-restored domain from ever being started. The intent is durable first. Then the disks are
// written, each under another name or, on a device, with its first MiB zeros until it is whole. Only when all are
// whole do the files get their names, the disks their volumes, NVRAM and TPM their state, all durably; then the domain is
// defined, and then the intent goes. What a crash interrupts is found by the intent, which says what is there because of it
// (Journal.CutOff), and taken away by Entry.Undo.
package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/domainxml"
	"github.com/virt-cow/virt-cow/internal/durable"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// Host is what a domain is restored on, and out of.
type Host struct {
	Libvirt libvirtx.Conn
	Volumes Volumes
	// Write writes a disk of the backup, durably: to a device, over what it holds; to a file that was made for it and is empty.
	Write func(ctx context.Context, d Disk, path string) error
	// File is a file of the backup, nil for one that is to be left out.
	File func(ctx context.Context, name string) ([]byte, error)
}

// Done is what a restore has made.
type Done struct {
	Domain  libvirtx.Domain
	Volumes map[string]*api.VolumeInfo // by target
	Places  domainxml.Places
}

// undoTime bounds the removal of what a restore that failed has made.
const undoTime = 2 * time.Minute

// Run carries a plan out that was checked. e is held, without an intent. When it fails nothing is left but what a device
// held before, which is lost: its first MiB is zeros, or it is whole. If libvirt refuses the definition everything
// stays, with the intent, and the error says where the definition is.
func (p *Plan) Run(ctx context.Context, h Host, e *Entry) (*Done, error) {
	files := map[string][]byte{}
	for _, name := range p.State {
		b, err := h.File(ctx, name)
		if err != nil {
			return nil, err
		}
		if b != nil {
			files[name] = b
		}
	}
	release, err := p.holdFiles()
	if err != nil {
		return nil, err
	}
	defer release()
	e.Intent = p.intent()
	if err := e.save(); err != nil {
		e.Intent = Intent{}
		return nil, err
	}
	done, err := p.make(ctx, h, e, files)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		_, left := e.Undo(undo, h.Libvirt, h.Volumes)
		if left != nil {
			left = fmt.Errorf("and what it made could not be removed: %w; `virt-cow restore clean %s` tries again", left, p.Domain.Name)
		}
		return nil, errors.Join(err, left)
	}
	return done, p.define(ctx, h, e, done)
}

func (p *Plan) intent() Intent {
	i := Intent{
		Version: intentVersion, Domain: p.Domain.Name, UUID: p.Domain.UUID.String(), Backup: p.Backup, Begun: time.Now().Unix(),
		NVRAM: p.Places.NVRAM, TPM: p.Places.TPM,
	}
	if there, err := domainxml.StateAt(p.Places); err != nil || len(there) > 0 {
		i.Replaced = true
	}
	for _, d := range p.Disks {
		i.Disks = append(i.Disks, IntentDisk{Target: d.Target, Path: d.Path, Volume: d.Volume, Device: d.Device})
	}
	return i
}

// holdFiles keeps everybody else from using the files that are to be replaced.
func (p *Plan) holdFiles() (release func(), err error) {
	var held []*blockdev.File
	release = func() {
		for _, f := range held {
			f.Close()
		}
	}
	for _, d := range p.Disks {
		if !d.There || d.Device {
			continue
		}
		f, err := d.hold()
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, f)
	}
	return release, nil
}

// make makes all but the definition.
func (p *Plan) make(ctx context.Context, h Host, e *Entry, files map[string][]byte) (*Done, error) {
	for i, d := range p.Disks {
		if err := d.write(ctx, h, e, &e.Disks[i]); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Target, err)
		}
	}
	done := &Done{Domain: p.Domain, Volumes: map[string]*api.VolumeInfo{}, Places: p.Places}
	for _, d := range p.Disks {
		if err := d.name(); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Target, err)
		}
		v, err := h.Volumes.Adopt(ctx, d.adopt(false))
		if err != nil {
			return nil, fmt.Errorf("disk %s: volume %s: %w", d.Target, d.Volume, err)
		}
		done.Volumes[d.Target] = v
	}
	if err := domainxml.WriteState(p.Places, files, p.options.Force); err != nil {
		return nil, withForce(err)
	}
	return done, ctx.Err()
}

// write writes the disk to its device, or to a file beside its place.
func (d Disk) write(ctx context.Context, h Host, e *Entry, noted *IntentDisk) error {
	if d.Device {
		return h.Write(ctx, d, d.Path)
	}
	if err := durable.MakeDirs(filepath.Dir(d.Path), 0o711); err != nil { // as libvirt makes its folder for images
		return err
	}
	part := d.Path + PartSuffix
	f, err := CreatePart(part)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	x := st.Sys().(*syscall.Stat_t)
	noted.Dev, noted.Ino = x.Dev, x.Ino
	if err := e.save(); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return h.Write(ctx, d, part)
}

// name gives a file that is whole its name.
func (d Disk) name() error {
	switch {
	case d.Device:
		return nil
	case d.There:
		return replace(d.Path+PartSuffix, d.Path)
	}
	return Whole(d.Path+PartSuffix, d.Path)
}

// define defines the domain, of which everything else is whole.
func (p *Plan) define(ctx context.Context, h Host, e *Entry, done *Done) error {
	r, err := domainxml.Restore(p.definition, p.definitionPlan(done.Volumes))
	if err != nil {
		return err
	}
	e.Whole = true
	if err := e.save(); err != nil {
		return err
	}
	if err = p.free(ctx, h.Libvirt); err == nil { // Define would replace a domain that came meanwhile
		_, err = h.Libvirt.Define(ctx, r.XML)
	}
	if err == nil {
		return e.end()
	}
	name := p.Domain.Name
	if werr := durable.Replace(e.definition(), []byte(r.XML), 0o600); werr != nil {
		return errors.Join(err, werr)
	}
	return fmt.Errorf("disks and state are whole, but the domain could not be defined: %w; its definition is %s: once that is mended and `virsh define` takes it, "+
		"`virt-cow restore clean %s` ends the restore; called before it removes everything that was restored", err, e.definition(), name)
}
