// Package reader is a volume as it was at a cut.
package reader
