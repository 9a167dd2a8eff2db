// Package cgo is the driver of libvirtx that uses libvirt's own library through libvirt.org/go/libvirt. It is
// empty unless built with the tag libvirt_cgo. With libvirt_dlopen too the library is loaded when it is first used,
// so that building needs a C compiler but no libvirt headers, and the program starts on a host without libvirt.
//
// Before release 10.3.0 the library has a stack use after return in its client (CVE-2024-4418): two calls at
// once on one connection, or its keepalive running out during one, end the program. So one connection has the events
// and no calls; each call has another one to itself, out of a few that are kept; and libvirtx.Session's probe stands
// in for the library's keepalive.
//
// A call in the library can't be interrupted, nor can the opening of a connection. One that was given up keeps
// a thread and its connection until libvirtd answers or ends; there is a limit on how many. Of connections
// for Dial only one is opened at a time.
package cgo
