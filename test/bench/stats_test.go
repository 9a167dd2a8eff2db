package main

import "testing"

func TestPairedWith(t *testing.T) {
	base, other := &row{}, &row{}
	for i := range 101 { // twice as much each time, whatever the machine did
		base.add(float64(i + 1))
		other.add(float64(2 * (i + 1)))
	}
	other.Runs[0] = 1e6
	if other.pairedWith(base, "x"); other.Ratio != 2 || other.Note != "95%: 2.000 to 2.000; half of 101 pairs: 2.000 to 2.000" {
		t.Errorf("%v, %q", other.Ratio, other.Note)
	}
}

func TestParseStat(t *testing.T) {
	text := "    11  2  3  4  55  6  7  8  0  9  10  11  12  13  14  77  15\n"
	io, err := parseStat("x", text)
	if err != nil || io != (deviceIO{11, 55, 7 * 512, 77}) {
		t.Errorf("%+v %v", io, err)
	}
	if _, err := parseStat("x", "1 2 3"); err == nil {
		t.Error("an old kernel's counters are taken for zero flushes")
	}
}

func TestPulse(t *testing.T) {
	var p pulse
	p.take([]byte("cdc"))
	p.take([]byte("c"))
	if p.beats('c') != 3 || p.beats('d') != 1 || p.gap('d') != 0 {
		t.Errorf("%d %d %v", p.beats('c'), p.beats('d'), p.gap('d'))
	}
}
