package config

import _ "embed"

// Example is a file with every key, commented out, at its default.
//
//go:embed config.toml
var Example string
