package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// record is written before an engine is started and removed after it was stopped: by it the next daemon
// knows which engines are its own. The run folder is emptied by a reboot, and so are the engines.
type record struct {
	Version int           `json:"version"`
	Want    libvirtx.Want `json:"want"`
}

const recordVersion = 1

const recordSuffix = ".volume"

func (d *Daemon) recordPath(volume string) string {
	return filepath.Join(d.config.RunDir, volume+recordSuffix)
}

func (d *Daemon) writeRecord(w libvirtx.Want) error {
	b, err := json.Marshal(record{Version: recordVersion, Want: w})
	if err != nil {
		return err
	}
	path := d.recordPath(w.Volume)
	if err := os.WriteFile(path+".new", b, 0o640); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (d *Daemon) removeRecord(volume string) error {
	err := os.Remove(d.recordPath(volume))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// adopt finds the engines an earlier daemon left. Which domain has them is for the reconciler to find out.
func (d *Daemon) adopt() error {
	paths, err := filepath.Glob(filepath.Join(d.config.RunDir, "*"+recordSuffix))
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := d.adoptOne(path); err != nil {
			// Its volume is left alone: an engine may well run.
			d.log.Error().Err(err).Str("record", path).Msg("can't adopt an engine")
		}
	}
	return nil
}

func (d *Daemon) adoptOne(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return err
	}
	if r.Version != recordVersion {
		return fmt.Errorf("version %d, this program knows %d", r.Version, recordVersion)
	}
	name := r.Want.Volume
	if err := cowfmt.ValidName(name); err != nil {
		return err
	}
	p, err := adoptProcess(d.controlPath(name))
	if err != nil {
		return err
	}
	if p == nil { // died with no daemon there to see it: the reconciler starts it again if it is wanted
		return d.removeRecord(name)
	}
	v := &volume{name: name, want: r.Want, state: api.VolumeStarting}
	v.engine = d.newEngine(name)
	d.volumes[name] = v
	d.log.Info().Str("volume", name).Int("pid", p.pid).Msg("engine adopted")
	d.tasks.Go(func() { v.engine.run(p, d.starter(v)) })
	return nil
}
