package metrics

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/virt-cow/virt-cow/internal/api"
)

// metric is one name of the exposition.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

var all []metric

func gauge(name, help string, labels ...string) metric {
	return add(name, help, prometheus.GaugeValue, labels)
}

func counter(name, help string, labels ...string) metric {
	return add(name, help, prometheus.CounterValue, labels)
}

func add(name, help string, kind prometheus.ValueType, labels []string) metric {
	m := metric{prometheus.NewDesc("virt_cow_"+name, help, labels, nil), kind}
	all = append(all, m)
	return m
}

func (m metric) send(ch chan<- prometheus.Metric, value float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
}

var (
	buildInfo       = gauge("build_info", "The program, the daemon's or the image node's; always 1.", "version", "goversion")
	startTime       = gauge("start_time_seconds", "When that process started, Unix time.")
	libvirtUp       = gauge("libvirt_connected", "Whether the daemon has a connection to libvirt.")
	catalogue       = gauge("catalogue_volumes", "Volumes in the catalogue, in use or not.")
	volumes         = gauge("volumes", "Volumes that are in use or failed, by state.", "state")
	sickDomains     = gauge("domains_with_errors", "Domains for whose disks as a whole something could not be done.")
	oldEngines      = gauge("engines_old", "Engines that run another version of the program than the daemon.")
	silentEngines   = gauge("engines_not_answering", "Engine processes that run but did not say how they are.")
	reconciles      = counter("reconciles_total", "Comparisons of what a domain should have with what it has.")
	reconcileErrors = counter("reconcile_errors_total", "Comparisons of what a domain should have with what it has that failed.")
	engineRestarts  = counter("engine_restarts_total", "Engines started again after an end nobody asked for.")
	resumes         = counter("guest_resumes_total", "Guests resumed that an I/O error of a volume had paused.")
	reconnects      = counter("libvirt_reconnects_total", "Connections to libvirt after the first.")
	pluginFailures  = counter("plugin_failures_total", "Calls of plugins that failed, and events no plugin was told of.")
	pluginVetoes    = counter("plugin_vetoes_total", "Operations that a plugin did not allow.")

	migrating        = gauge("volumes_migrating", "Volumes whose domain is migrating, by where to.", "direction")
	migrationsIn     = counter("migrations_in_total", "Domains with volumes that migrated here.")
	migrationsOut    = counter("migrations_out_total", "Domains with volumes that migrated to another host.")
	migrationsFailed = counter("migrations_failed_total", "Migrations of domains with volumes, in and out, that failed or were cancelled.")
	takeovers        = counter("takeovers_total", "Volumes that were taken over from a dead host by force.")
)

// volumeStates are all values of the label state of virt_cow_volumes.
var volumeStates = []string{
	api.VolumeOff, api.VolumeStarting, api.VolumeServed, api.VolumeAttached, api.VolumeDetaching, api.VolumeDetached,
	api.VolumeStopping, api.VolumeIncoming, api.VolumeElsewhere, api.VolumeFailed,
}

// directions are all values of the label direction.
var directions = []string{"in", "out"}

// collector shows one status, as it was now.
type collector struct {
	s   *api.DaemonStatus
	now time.Time
}

// Describe lists all there can be.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range all {
		ch <- m.desc
	}
	ch <- latency
}

// Collect shows the daemon and each volume.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.s
	buildInfo.send(ch, 1, label(s.Version), runtime.Version())
	startTime.send(ch, float64(s.Started))
	libvirtUp.send(ch, truth(s.Libvirt.Connected))
	catalogue.send(ch, float64(s.Catalogue))
	sickDomains.send(ch, float64(len(s.Domains)))
	reconciles.send(ch, float64(s.Counters.Reconciles))
	reconcileErrors.send(ch, float64(s.Counters.ReconcileErrors))
	engineRestarts.send(ch, float64(s.Counters.EngineRestarts))
	resumes.send(ch, float64(s.Counters.Resumes))
	reconnects.send(ch, float64(s.Counters.Reconnects))
	pluginFailures.send(ch, float64(s.Counters.PluginFailures))
	pluginVetoes.send(ch, float64(s.Counters.Vetoes))

	migrationsIn.send(ch, float64(s.Counters.MigrationsIn))
	migrationsOut.send(ch, float64(s.Counters.MigrationsOut))
	migrationsFailed.send(ch, float64(s.Counters.MigrationsFailed))
	takeovers.send(ch, float64(s.Counters.Takeovers))

	states, moving, old, silent := map[string]int{}, map[string]int{}, 0, 0
	for i := range s.Volumes {
		v := &s.Volumes[i]
		states[v.State]++
		if v.Old {
			old++
		}
		if v.PID != 0 && v.Engine == nil {
			silent++
		}
		if v.Migration != nil {
			moving[v.Migration.Direction]++
		}
		sendVolume(ch, v)
		sendHandover(ch, v, c.now)
	}
	for _, direction := range directions {
		migrating.send(ch, float64(moving[direction]), direction)
	}
	for _, state := range volumeStates {
		volumes.send(ch, float64(states[state]), state)
	}
	c.sendBackups(ch)
	oldEngines.send(ch, float64(old))
	silentEngines.send(ch, float64(silent))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
