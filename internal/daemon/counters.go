package daemon

import (
	"sync/atomic"

	"github.com/virt-cow/virt-cow/internal/api"
)

// counters count since the daemon's start.
type counters struct {
	reconciles, reconcileErrors, engineRestarts, resumes, connects atomic.Uint64
	migrationsIn, migrationsOut, migrationsFailed, takeovers       atomic.Uint64
}

func (d *Daemon) count() api.Counters {
	c := &d.counters
	return api.Counters{
		Reconciles: c.reconciles.Load(), ReconcileErrors: c.reconcileErrors.Load(), EngineRestarts: c.engineRestarts.Load(),
		Resumes: c.resumes.Load(), Reconnects: max(c.connects.Load(), 1) - 1,
		PluginFailures: d.config.Plugins.Failures(), Vetoes: d.config.Plugins.Vetoes(),
		MigrationsIn: c.migrationsIn.Load(), MigrationsOut: c.migrationsOut.Load(), MigrationsFailed: c.migrationsFailed.Load(),
		Takeovers: c.takeovers.Load(),
	}
}
