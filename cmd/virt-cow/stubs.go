package main

type DoctorCmd struct{}

func (DoctorCmd) Run(env *Env) error { return nil }

type CompletionCmd struct{}

func (CompletionCmd) Run(env *Env) error { return nil }

type CompleteCmd struct{}

func (CompleteCmd) Run(env *Env) error { return nil }

type ManCmd struct{}

func (ManCmd) Run(env *Env) error { return nil }

var examples = map[string][]string{}
