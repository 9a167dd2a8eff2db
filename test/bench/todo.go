package main

import "context"

func runEpoch(ctx context.Context, b *bench, rep *report) error   { return nil }
func runSwitch(ctx context.Context, b *bench, rep *report) error  { return nil }
func runMigrate(ctx context.Context, b *bench, rep *report) error { return nil }
