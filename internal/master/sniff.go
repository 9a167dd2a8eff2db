package master

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// signatures of image formats that read as garbage when they are taken for raw, and of things that are
// on a device for a reason.
var signatures = []struct {
	offset int
	magic  string
	name   string
	image  bool // an image format, not content
}{
	{0, "QFI\xfb", "qcow2", true},
	{0, "QED\x00", "QED", true},
	{0, "KDMV", "VMDK", true},
	{0, "# Disk DescriptorFile", "VMDK", true},
	{0, "vhdxfile", "VHDX", true},
	{0, "conectix", "VHD", true},
	{0x40, "\x7f\x10\xda\xbe", "VDI", true},
	{0, cowfmt.Magic, "virt-cow store", true},
	{0, "LUKS\xba\xbe", "LUKS", false},
	{510, "\x55\xaa", "boot sector or partition table", false},
	{512, "EFI PART", "GPT", false},
	{512, "LABELONE", "LVM physical volume", false},
	{0x438, "\x53\xef", "ext2/3/4 file system", false},
	{0, "XFSB", "XFS file system", false},
	{0x10040, "_BHRfS_M", "btrfs file system", false},
	{4086, "SWAPSPACE2", "swap space", false},
	{4096, "\xfc\x4e\x2b\xa9", "MD RAID", false},
}

// Signature names what is on a file or device, "" where nothing known is. image: it is an image format
// rather than what a raw disk may hold.
func Signature(r io.ReaderAt) (name string, image bool, err error) {
	head := make([]byte, 68<<10)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", false, err
	}
	for _, s := range signatures {
		if end := s.offset + len(s.magic); end <= n && string(head[s.offset:end]) == s.magic {
			return s.name, s.image, nil
		}
	}
	return "", false, nil
}

// sniff refuses a plain path that does not look raw: which format it is, is for the user to say.
func sniff(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	name, image, err := Signature(f)
	if err != nil || !image {
		return err
	}
	if name == "virt-cow store" {
		return fmt.Errorf("%s: %w: it holds a virt-cow store; say store:%s to clone its volume, or raw:%s for the bytes as they are", path, ErrFormat, path, path)
	}
	return fmt.Errorf("%s: %w but %s; convert it (qemu-img convert -O raw %s master.raw), or export it (qemu-nbd --read-only --persistent --shared=0 -k /run/master.sock %s) and use nbd+unix:///?socket=/run/master.sock, or say raw:%s if its bytes are the disk",
		path, ErrFormat, name, path, path, path)
}
