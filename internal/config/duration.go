package config

import (
	"fmt"
	"time"
)

// Duration is a time.Duration as text, such as 45s.
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration reads, greater than zero.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v <= 0 {
		return fmt.Errorf("%q is no time: write 45s or 2m", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }
