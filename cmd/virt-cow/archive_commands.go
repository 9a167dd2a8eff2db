package main

// The commands that need the archive, as both programs know them. What they do is in files with the build tag !virtcow_lean.

// ArchiveCmd is about the archive.
type ArchiveCmd struct {
	Create   ArchiveCreateCmd   `cmd:"" help:"Make the archive that the configuration names."`
	Check    ArchiveCheckCmd    `cmd:"" help:"Open the archive, and say what is wrong if that fails."`
	Maintain ArchiveMaintainCmd `cmd:"" help:"Give back the room of what no backup has any more."`
}

// ArchiveCreateCmd makes the archive.
type ArchiveCreateCmd struct{}

// ArchiveCheckCmd opens the archive.
type ArchiveCheckCmd struct{}

// ArchiveMaintainCmd maintains the archive.
type ArchiveMaintainCmd struct {
	Full     bool `help:"Give back room too, whatever the schedule says."`
	TakeOver bool `help:"Do it though another host did so far: that one must not do it any more."`
}

// ImageNodeCmd copies guests' disks into the archive.
type ImageNodeCmd struct{}

// BackupListCmd lists backups.
type BackupListCmd struct {
	Domain string `arg:"" optional:"" help:"Only this domain's." complete:"domain"`
}

// BackupShowCmd shows a backup.
type BackupShowCmd struct {
	Backup string `arg:"" help:"The backup's id, as list prints it."`
	XML    bool   `help:"Print the domain's definition as it was, and nothing else." name:"xml"`
}

// BackupVerifyCmd verifies a backup.
type BackupVerifyCmd struct {
	Backup string `arg:"" help:"The backup's id, as list prints it."`
}

// BackupDeleteCmd deletes a backup.
type BackupDeleteCmd struct {
	Backup string `arg:"" help:"The backup's id, as list prints it."`
	Yes    bool   `help:"Don't ask."`
}

// DiskFlags name a disk of a backup.
type DiskFlags struct {
	Backup  string `arg:"" help:"The backup's id, as list prints it."`
	Disk    string `arg:"" help:"The disk as the guest had it, such as vda."`
	SkipBad bool   `help:"Take zeros for what is damaged in the archive, and say where; else it is an error."`
}

// BackupServeCmd serves a disk of a backup.
type BackupServeCmd struct {
	DiskFlags
	Socket string `help:"Unix socket to serve NBD on." type:"path" required:"" placeholder:"PATH"`
}

// BackupExportCmd writes an image file.
type BackupExportCmd struct {
	DiskFlags
	File     string `arg:"" help:"The file to write." type:"path"`
	Format   string `help:"raw, or qcow2 by means of qemu-img." enum:"raw,qcow2" default:"raw"`
	Compress bool   `help:"Compress the clusters of a qcow2 image."`
}

// RestoreCmd gets guests and disks out of backups.
type RestoreCmd struct {
	Domain RestoreDomainCmd `cmd:"" help:"Restore a guest on this host: its disks, its NVRAM and TPM state, its definition."`
	Disk   RestoreDiskCmd   `cmd:"" help:"Write a disk of a backup to a file or device."`
	Clean  RestoreCleanCmd  `cmd:"" help:"Remove what the restore of a guest that was cut off has left."`
}

// RestoreDomainCmd restores a guest.
type RestoreDomainCmd struct {
	Backup       string   `arg:"" help:"The backup's id, as list prints it."`
	As           string   `help:"Name of the restored guest; by default its old one." placeholder:"NAME"`
	Disk         []string `help:"Where a disk goes: a new file, or a block device by a name that does not change. Once for each disk; those that are not named go to --folder." placeholder:"TARGET=PATH" sep:"none"`
	State        []string `help:"Where the state store of a disk's volume is made, a file or a small LUN; in the folder for stores by default. Where the guest is to migrate all hosts must see it." placeholder:"TARGET=PATH" sep:"none"`
	Folder       string   `help:"Where disks go that --disk does not name, each as a new file VOLUME.raw." type:"path" default:"/var/lib/libvirt/images" placeholder:"DIR"`
	KeepIdentity bool     `help:"Keep UUID, MAC addresses and whatever else must be there only once: for a guest that is gone, on all hosts."`
	Force        bool     `help:"Write over devices, files, NVRAM and TPM state that are there: what they hold is lost. And begin anew what was cut off."`
	SkipBad      bool     `help:"Take zeros for what is damaged in the archive, and say where; else nothing is restored."`
	DryRun       bool     `help:"Show what would be done, and do nothing."`
}

// RestoreDiskCmd restores a disk.
type RestoreDiskCmd struct {
	DiskFlags
	To    string `arg:"" help:"A new file, or a block device." type:"path"`
	Force bool   `help:"Write over a device or file that is there: what it holds is lost."`
}

// RestoreCleanCmd clears up after a restore.
type RestoreCleanCmd struct {
	Domain string `arg:"" help:"Name of the guest that was being restored."`
}
