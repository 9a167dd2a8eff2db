package main

// stub until the daemon's commands are there
type DaemonCmd struct{}
type AttachCmd struct{}
type DetachCmd struct{}
type StatusCmd struct{}
func (*DaemonCmd) Run(*Env) error { return nil }
func (*AttachCmd) Run(*Env) error { return nil }
func (*DetachCmd) Run(*Env) error { return nil }
func (*StatusCmd) Run(*Env) error { return nil }
