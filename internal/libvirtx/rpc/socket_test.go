package rpc

import "testing"

func FuzzPackets(f *testing.F) {
	f.Add([]byte{0, 0, 0, 28, 1, 2, 3}, uint8(1))
	f.Add([]byte{0, 0, 0, 27}, uint8(3))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, uint8(4))
	f.Fuzz(func(t *testing.T, stream []byte, piece uint8) {
		// However it is cut into reads, the same is let through.
		var whole, cut socket
		first := whole.check(stream)
		var second error
		for p := stream; len(p) > 0 && second == nil; {
			n := min(int(piece)+1, len(p))
			second = cut.check(p[:n])
			p = p[n:]
		}
		if (first == nil) != (second == nil) || first == nil && (whole.left != cut.left || len(whole.head) != len(cut.head)) {
			t.Fatal(first, second, whole.left, cut.left)
		}
	})
}
