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

// RestoreCmd gets disks out of backups.
type RestoreCmd struct {
	Disk RestoreDiskCmd `cmd:"" help:"Write a disk of a backup to a file or device."`
}

// RestoreDiskCmd restores a disk.
type RestoreDiskCmd struct {
	DiskFlags
	To    string `arg:"" help:"A new file, or a block device." type:"path"`
	Force bool   `help:"Write over a device or file that is there: what it holds is lost."`
}
