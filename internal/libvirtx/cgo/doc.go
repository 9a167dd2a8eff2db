// Package cgo is the driver of libvirtx that uses libvirt's own library through libvirt.org/go/libvirt. It is
// empty unless built with the tag libvirt_cgo. With libvirt_dlopen too the library is loaded when it is first used,
// so that building needs a C compiler but no libvirt headers, and the program starts on a host without libvirt.
//
// The library has its own keepalive, which ends every call to a libvirtd that hangs. Two things can't be
// interrupted: a call that was given up keeps a thread until libvirtd answers or the keepalive strikes; and the opening
// of a connection, which the keepalive does not cover, keeps one until libvirtd answers or ends. So only one
// connection is opened at a time.
package cgo
