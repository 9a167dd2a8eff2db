package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// VolumeCmd is the catalogue of volumes.
type VolumeCmd struct {
	List    VolumeListCmd   `cmd:"" help:"List all volumes."`
	Show    VolumeShowCmd   `cmd:"" help:"Show all that is known of a volume."`
	Create  VolumeCreateCmd `cmd:"" help:"Make a volume: an empty disk, or a clone of a master image."`
	Clone   VolumeCloneCmd  `cmd:"" help:"Make a clone of a volume or of a master image."`
	Adopt   VolumeAdoptCmd  `cmd:"" help:"Take a store, or a raw disk, that exists into the catalogue."`
	Delete  VolumeDeleteCmd `cmd:"" help:"Delete volumes with their data."`
	Scan    VolumeScanCmd   `cmd:"" help:"Find volumes by their stores, and write the catalogue anew."`
	Start   VolumeStartCmd  `cmd:"" help:"Serve volumes though no guest has them."`
	Stop    VolumeStopCmd   `cmd:"" help:"End what start began."`
	Restart RestartCmd      `cmd:"" help:"Replace engine processes by new ones, one after the other, while guests run."`
	Wait    VolumeWaitCmd   `cmd:"" help:"Wait until a volume is attached, served, hydrated or gone."`
}

// placeFlags say where a store goes.
type placeFlags struct {
	Store    string `help:"Where: a new file, or a block device by a name that does not change, such as /dev/disk/by-id/NAME." type:"path" xor:"place" placeholder:"PATH"`
	Pool     string `help:"Where: a volume made in this libvirt storage pool." xor:"place" placeholder:"POOL"`
	LUN      string `help:"Volume of the pool to use; for pools that can't make any, such as iscsi." name:"lun" placeholder:"NAME"`
	Provider string `help:"Where: what this provider plugin makes." xor:"place" placeholder:"NAME"`
	Force    bool   `help:"Use a device although something is on it: that is lost."`
}

func (p *placeFlags) request(name string) api.CreateRequest {
	return api.CreateRequest{Name: name, Store: p.Store, Pool: p.Pool, LUN: p.LUN, Provider: p.Provider, Force: p.Force}
}

// VolumeCreateCmd makes a volume.
type VolumeCreateCmd struct {
	Name   string `arg:"" help:"Name of the new volume; the store is made in the folder for stores by default."`
	Size   Size   `help:"Size, 10G or 512M; the master's by default." placeholder:"SIZE"`
	Master string `help:"What to clone: a raw file or block device, store:PATH, nbd+unix:///EXPORT?socket=PATH or nbd://HOST/EXPORT." placeholder:"MASTER"`
	Chunk  Size   `help:"Size of a chunk, a power of two from 4K to 1M; 4K by default." placeholder:"SIZE"`
	placeFlags
}

// Run returns when the volume is there.
func (c *VolumeCreateCmd) Run(env *Env) error {
	if c.Size == 0 && c.Master == "" {
		return exitError{errors.New("say what to make: --size, --master, or both"), exitUsage}
	}
	r := c.request(c.Name)
	r.Size, r.ChunkSize, r.Master = int64(c.Size), int64(c.Chunk), absoluteMaster(c.Master)
	return create(env, r)
}

// VolumeCloneCmd makes a clone.
type VolumeCloneCmd struct {
	Source string `arg:"" help:"A volume, which must not be open for writing, or a master as for volume create." complete:"volume"`
	Name   string `arg:"" help:"Name of the new volume."`
	Size   Size   `help:"Size of the clone, if larger." placeholder:"SIZE"`
	Chunk  Size   `help:"Size of a chunk, a power of two from 4K to 1M; 4K by default." placeholder:"SIZE"`
	placeFlags
}

// Run takes a name for that of a volume, if there is one.
func (c *VolumeCloneCmd) Run(env *Env) error {
	r := c.request(c.Name)
	r.Size, r.ChunkSize = int64(c.Size), int64(c.Chunk)
	if cowfmt.ValidName(c.Source) == nil {
		_, err := api.NewDaemon(env.RunDir).Volume(env.Context, c.Source)
		switch {
		case err == nil:
			r.From = c.Source
			return create(env, r)
		case !notFound(err):
			return daemonError(err)
		}
		if _, err := os.Stat(c.Source); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: neither a volume nor a file: `virt-cow volume list` prints the volumes", c.Source)
		}
	}
	r.Master = absoluteMaster(c.Source)
	return create(env, r)
}

func create(env *Env, r api.CreateRequest) error {
	if err := cowfmt.ValidName(r.Name); err != nil {
		return exitError{err, exitUsage}
	}
	if r.LUN != "" && r.Pool == "" {
		return exitError{errors.New("--lun is a volume of a pool: name that with --pool"), exitUsage}
	}
	v, err := api.NewDaemon(env.RunDir).Create(env.Context, r)
	return made(env, v, err)
}

// made tells of a volume that is new to the catalogue.
func made(env *Env, v *api.VolumeInfo, err error) error {
	if err != nil {
		return daemonError(err)
	}
	if env.JSON {
		return printJSON(env, v)
	}
	of := ""
	switch {
	case v.Origin != "":
		of = ", the raw disk " + v.Origin
	case v.Master != "":
		of = ", a clone of " + v.Master
	}
	fmt.Fprintf(env.Stdout, "volume %s: %s%s, at %s\n", v.Name, formatSize(v.Size), of, v.Store)
	return nil
}

// absoluteMaster makes the path in a master absolute: the daemon runs in another folder.
func absoluteMaster(master string) string {
	prefix, path := "", master
	switch scheme, rest, ok := strings.Cut(master, ":"); {
	case master == "", ok && strings.HasPrefix(rest, "//"):
		return master
	case ok && (scheme == "store" || scheme == "raw"):
		prefix, path = scheme+":", rest
	}
	abs, err := filepath.Abs(path)
	if err != nil { // no working directory any more: the daemon says what it thinks of the path
		return master
	}
	return prefix + abs
}

// VolumeAdoptCmd takes what exists.
type VolumeAdoptCmd struct {
	Store string `arg:"" optional:"" help:"A store: file or block device. With --raw: where the state store is made; in the folder for stores by default." type:"path"`
	Raw   string `help:"A raw disk. It is left as it is; a state store is made beside it." type:"path" placeholder:"DISK"`
	Name  string `help:"Name of the volume: of a raw disk its new one, of a store checked." placeholder:"VOLUME"`
}

// Run leaves the data where it is.
func (c *VolumeAdoptCmd) Run(env *Env) error {
	switch {
	case c.Store == "" && c.Raw == "":
		return exitError{errors.New("say what to adopt: a store, or --raw DISK"), exitUsage}
	case c.Raw != "" && c.Name == "":
		return exitError{errors.New("give the raw disk's volume a name with --name"), exitUsage}
	}
	v, err := api.NewDaemon(env.RunDir).Adopt(env.Context, api.AdoptRequest{Store: c.Store, Raw: c.Raw, Name: c.Name})
	return made(env, v, err)
}

// notFound says whether the daemon knows no such volume.
func notFound(err error) bool {
	var r *api.RemoteError
	return errors.As(err, &r) && r.Code == http.StatusNotFound
}
