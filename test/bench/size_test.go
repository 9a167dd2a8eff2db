package main

import "testing"

func TestSize(t *testing.T) {
	for text, want := range map[string]size{"": 0, "4096": 4096, "64K": 64 << 10, "64k": 64 << 10, "1GiB": 1 << 30, "3M": 3 << 20, "1T": 1 << 40, "2gb": 2 << 30} {
		var got size
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"K", "-1", "0", "1.5G", "9999999999T", "1P", "x"} {
		var got size
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: %d, want an error", text, got)
		}
	}
	for v, want := range map[size]string{1 << 40: "1T", 64 << 10: "64K", 1000: "1000", 3 << 19: "1536K"} {
		if v.String() != want {
			t.Errorf("%d: %s, want %s", int64(v), v, want)
		}
	}
}
