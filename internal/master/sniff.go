package master

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

const storeSignature = "virt-cow store"

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
	{0, cowfmt.Magic, storeSignature, true},
	{0, "LUKS\xba\xbe", "LUKS", false},
	{512, "EFI PART", "GPT partition table", false}, // before its protective MBR
	{4096, "EFI PART", "GPT partition table", false},
	{512, "LABELONE", "LVM physical volume", false},
	{510, "\x55\xaa", "boot sector or partition table", false},
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

// vhdFooter is what the last sector of a VHD of fixed size begins with; the rest of it looks raw.
const vhdFooter = "conectix"

// sniff refuses a plain path that does not look raw: which format it is, is for the user to say.
func sniff(path string) error {
	f, err := openPlain(path)
	if err != nil {
		return fmt.Errorf("master: %w", err)
	}
	defer f.Close()
	name, err := imageFormat(f)
	if err != nil {
		return fmt.Errorf("master: %w", err)
	}
	if name == "" {
		return nil
	}
	if name == storeSignature {
		return fmt.Errorf("%s: %w: it holds a virt-cow store; say store:%s to clone its volume, or raw:%s for the bytes as they are", path, ErrFormat, path, path)
	}
	format, file := qemuFormats[name], Quote(path)
	return fmt.Errorf("%s: %w but %s. Convert it:\n"+
		"  qemu-img convert -f %s -O raw %s master.raw\n"+
		"or export it and clone it with --master 'nbd+unix:///?socket=/run/master.sock':\n"+
		"  qemu-nbd --fork --read-only --persistent --shared=0 -f %s -k /run/master.sock %s\n"+
		"or say raw:%s if its bytes are the disk", path, ErrFormat, name, format, file, format, file, path)
}

// qemuFormats are QEMU's names of the image formats: it does not recognise all that are here by itself.
var qemuFormats = map[string]string{"qcow2": "qcow2", "QED": "qed", "VMDK": "vmdk", "VHDX": "vhdx", "VHD": "vpc", "VDI": "vdi"}

// Quote makes a path one word for a shell.
func Quote(path string) string {
	safe := func(r rune) bool {
		return r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || strings.ContainsRune("/._-+:@%,=", r)
	}
	if path != "" && strings.IndexFunc(path, func(r rune) bool { return !safe(r) }) < 0 {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

func isFixedVHD(f *os.File) bool {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || end < 512 {
		return false
	}
	footer := make([]byte, len(vhdFooter))
	_, err = f.ReadAt(footer, end-512)
	return err == nil && bytes.Equal(footer, []byte(vhdFooter))
}
