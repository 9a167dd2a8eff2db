package main

import (
	"fmt"
	"strconv"
	"strings"
)

// size is a number of bytes; as text with K, M, G or T it counts in powers of 1024.
type size int64

const units = "KMGT"

// UnmarshalText reads 4096, 64K, 1G or 1GiB; nothing is no size.
func (s *size) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*s = 0
		return nil
	}
	str := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(string(text)), "B"), "I")
	shift := 0
	if n := len(str); n > 0 {
		if i := strings.IndexByte(units, str[n-1]); i >= 0 {
			shift, str = 10*(i+1), str[:n-1]
		}
	}
	v, err := strconv.ParseInt(str, 10, 64)
	if err != nil || v <= 0 || v > (1<<62)>>shift {
		return fmt.Errorf("size %q: want a number with K, M, G or T", text)
	}
	*s = size(v << shift)
	return nil
}

// String is the shortest text that UnmarshalText reads back.
func (s size) String() string {
	v, unit := int64(s), ""
	for i := 0; i < len(units) && v != 0 && v%1024 == 0; i++ {
		v, unit = v/1024, units[i:i+1]
	}
	return strconv.FormatInt(v, 10) + unit
}

// MarshalText is String, so that the options read well in the JSON report; of no size it is empty.
func (s size) MarshalText() ([]byte, error) {
	if s == 0 {
		return nil, nil
	}
	return []byte(s.String()), nil
}
