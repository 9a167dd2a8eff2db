package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/virt-cow/virt-cow/internal/api"
)

var (
	volumeInfo   = gauge("volume_info", "Which domain has the volume, empty for none; always 1.", "volume", "domain")
	volumeFailed = gauge("volume_failed", "Whether the volume failed; virt-cow status says why.", "volume")
	engineUp     = gauge("volume_engine_up", "Whether the volume's engine process answered.", "volume")
	engineOld    = gauge("volume_engine_old", "Whether the engine runs another version of the program than the daemon.", "volume")
	engineStart  = gauge("volume_engine_start_time_seconds", "When the engine process started, Unix time.", "volume")
	connections  = gauge("volume_connections", "NBD connections to the engine.", "volume")
	size         = gauge("volume_size_bytes", "Size of the volume.", "volume")
	cacheOn      = gauge("volume_cache_on", "Whether the exception cache is on.", "volume")
	suspended    = gauge("volume_suspended", "Whether I/O is held.", "volume")
	failing      = gauge("volume_flush_failed", "Whether flushing failed, and so fails until the engine is restarted.", "volume")

	operations = counter("volume_operations_total", "Requests of guests; write has trims and zeroes too.", "volume", "kind")
	transfers  = counter("volume_bytes_total", "Bytes guests read and wrote.", "volume", "kind")
	copied     = counter("volume_copied_bytes_total", "Bytes copied from the master because of guests' writes.", "volume")
	hydratedBy = counter("volume_hydrated_bytes_total", "Bytes copied from the master in the background.", "volume")
	commits    = counter("volume_commits_total", "Commits of the exception table.", "volume")
	ioErrors   = counter("volume_errors_total", "Requests answered with an error.", "volume")
	refused    = counter("volume_refused_connections_total", "NBD connections of processes that may not have the volume.", "volume")
	amplified  = gauge("volume_write_amplification_ratio",
		"Bytes that guests wrote, were copied and were hydrated, by bytes guests wrote, since the engine started.", "volume")

	hydrationDone  = gauge("volume_hydration_done_bytes", "Bytes of the volume that its own store has.", "volume")
	hydrationSize  = gauge("volume_hydration_size_bytes", "Bytes of the volume that its own store will have.", "volume")
	hydrationLimit = gauge("volume_hydration_limit_bytes_per_second", "What hydration is held to; 0: nothing.", "volume")
	hydrationState = gauge("volume_hydration_state", "1 for the state hydration is in, 0 for the others.", "volume", "state")

	latency = prometheus.NewDesc("virt_cow_volume_request_duration_seconds",
		"How long requests of guests took, from the arrival of the request to the hand-over of the reply.", []string{"volume", "kind"}, nil)
)

var hydrationStates = []string{api.HydrationPaused, api.HydrationRunning, api.HydrationFailed, api.HydrationDone}

// label is text that may be a label's value: Prometheus refuses what is not UTF-8.
func label(s string) string { return strings.ToValidUTF8(s, "?") }

// sendVolume shows a volume. Of an engine that does not answer nothing is known.
func sendVolume(ch chan<- prometheus.Metric, v *api.VolumeStatus) {
	name := label(v.Volume)
	volumeInfo.send(ch, 1, name, label(v.Domain))
	volumeFailed.send(ch, truth(v.State == api.VolumeFailed), name)
	engineUp.send(ch, truth(v.Engine != nil), name)
	engineOld.send(ch, truth(v.Old), name)
	e := v.Engine
	if e == nil {
		return
	}
	engineStart.send(ch, float64(e.Started), name)
	connections.send(ch, float64(e.Connections), name)
	size.send(ch, float64(e.Size), name)
	cacheOn.send(ch, truth(e.Cache == api.CacheOn), name)
	suspended.send(ch, truth(e.Suspended), name)
	failing.send(ch, truth(e.Error != ""), name)
	sendIO(ch, name, &e.IO)
	if h := e.Hydration; h != nil {
		hydrationDone.send(ch, float64(h.Done), name)
		hydrationSize.send(ch, float64(h.Total), name)
		hydrationLimit.send(ch, float64(h.Rate), name)
		for _, state := range hydrationStates {
			hydrationState.send(ch, truth(h.State == state), name, state)
		}
	}
}

func sendIO(ch chan<- prometheus.Metric, name string, io *api.IOCounters) {
	operations.send(ch, float64(io.Reads), name, "read")
	operations.send(ch, float64(io.Writes), name, "write")
	operations.send(ch, float64(io.Flushes), name, "flush")
	transfers.send(ch, float64(io.ReadBytes), name, "read")
	transfers.send(ch, float64(io.WriteBytes), name, "write")
	copied.send(ch, float64(io.Copied), name)
	hydratedBy.send(ch, float64(io.Hydrated), name)
	commits.send(ch, float64(io.Commits), name)
	ioErrors.send(ch, float64(io.Errors), name)
	refused.send(ch, float64(io.Refused), name)
	if guest := float64(io.WriteBytes); guest > 0 {
		amplified.send(ch, (guest+float64(io.Copied)+float64(io.Hydrated))/guest, name)
	}
	for _, kind := range []string{"read", "write", "flush"} {
		if h := io.Latency[kind]; h != nil {
			count, buckets := thin(h)
			ch <- prometheus.MustNewConstHistogram(latency, count, float64(h.Micros)/1e6, buckets, name, kind)
		}
	}
}

// shown are the buckets of api.Histogram whose upper bounds are shown: 32 us to 17 s, closest where storage lives.
var shown = []int{5, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20, 22, 24}

// thin sums an engine's buckets up to those bounds, in seconds. What is behind the last is in the count only.
func thin(h *api.Histogram) (count uint64, buckets map[float64]uint64) {
	buckets = make(map[float64]uint64, len(shown))
	next := 0
	for i, n := range h.Counts {
		count += n
		if next < len(shown) && i == shown[next] {
			buckets[float64(uint64(1)<<i)/1e6] = count
			next++
		}
	}
	return count, buckets
}
