// Package blockdevtest holds what tests of block devices need: the suite every implementation of
// blockdev.Device passes, and devices that lose power, fail and dawdle on demand.
//
//	Conformance  the suite
//	Memory       a sparse device in memory, up to many TiB; Fork is cheap
//	Crash        a device with a write cache: gives the states a power cut can leave behind
//	Fault        fails the Nth operation of a device
//	Delay        holds writes back and lets them land later, even after their issuer died
package blockdevtest
