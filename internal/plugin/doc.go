// Package plugin runs a site's own executables: event plugins, which are asked before something is done to a
// volume and told after, and provider plugins, which make, find and delete stores with a storage's own commands.
// docs/PLUGINS.md is the contract they are written to.
//
// A plugin is a file of a folder, called as `NAME EVENT` with one JSON document on stdin. Nothing it does may hurt
// the daemon:
//
//   - It is run only if nobody but root (or the user the daemon runs as) could have put it there or changed it:
//     the file, the links to it and every folder on the way are checked at each call.
//   - It has a session and process group of its own, the root folder, a fixed environment and no descriptor but its
//     three pipes. The group is killed at the end of the call, whatever the end was.
//   - It has a time-out, and a limit on what it may write.
//
// What is asked fails closed: a plugin that can't be run, is killed by a signal or does not answer in time has
// vetoed, because a site that installs a guard wants it to hold. What is told fails open: it is counted and logged.
//
// Lock order: Runner.mu is never held while a plugin runs.
package plugin
