package main

import (
	"errors"
	"fmt"
	"math/bits"
	"reflect"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"
)

// Size is a number of bytes, written as 10G, 512M, 64K or plain bytes; powers of 1024.
type Size int64

var sizeMapper = kong.TypeMapper(reflect.TypeFor[Size](), kong.MapperFunc(func(ctx *kong.DecodeContext, target reflect.Value) error {
	var s string
	if err := ctx.Scan.PopValueInto("size", &s); err != nil {
		return err
	}
	n, err := parseSize(s)
	if err == nil {
		target.SetInt(n)
	}
	return err
}))

const sizeUnits = "KMGTPE"

func parseSize(s string) (int64, error) {
	number := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(strings.TrimSpace(s)), "B"), "I")
	shift := 0
	if n := len(number); n > 0 {
		if i := strings.IndexByte(sizeUnits, number[n-1]); i >= 0 {
			number, shift = number[:n-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if errors.Is(err, strconv.ErrRange) || err == nil && bits.Len64(n)+shift > 63 {
		return 0, fmt.Errorf("size %q: too large", s)
	}
	if err != nil {
		return 0, fmt.Errorf("size %q: write bytes, or a whole number with K, M, G or T, like 512M", s)
	}
	return int64(n) << shift, nil
}

// formatSize is for people: 1.5 GiB.
func formatSize(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	unit, value := -1, float64(n)
	for value >= 1023.995 && unit < len(sizeUnits)-1 {
		value /= 1024
		unit++
	}
	text := strconv.FormatFloat(value, 'f', 2, 64)
	text = strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
	return text + " " + sizeUnits[unit:unit+1] + "iB"
}

// count is for people: 1 problem, 2 problems.
func count[N int | uint64](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
