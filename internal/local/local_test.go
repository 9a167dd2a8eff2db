package local

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestListenAndPeer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := Listen(t.Context(), path, 0o660, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Fatal(st.Mode(), err)
	}
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	cred, err := Peer(c)
	if err != nil || int(cred.Pid) != os.Getpid() || int(cred.Uid) != os.Geteuid() || int(cred.Gid) != os.Getegid() {
		t.Fatal(cred, err)
	}
	mine, err := os.Getgroups()
	if got := PeerGroups(c); err != nil || !slices.Equal(got, mine) {
		t.Fatal(got, mine, err)
	}
	if fd, err := PeerPIDFD(c); err == nil { // from Linux 6.5 on
		if f := os.NewFile(uintptr(fd), "pidfd"); f == nil || f.Close() != nil {
			t.Fatal(fd)
		}
	}
	c.Close()
	if _, err := Peer(c); err == nil {
		t.Fatal("of a connection that is closed")
	}
}
