// Package metrics shows to Prometheus what the daemon knows, and what the image node does.
//
// Series are few and their number is known: each volume in use has about eighty, with its name as the label volume, and
// fifteen more while it is handed over; the domain is a label of virt_cow_volume_info only, to be joined where it is
// wanted, so that a volume that moves to another domain goes on with the same series. Backups are of domains, and have that
// label. All other labels have a handful of fixed values. Counters of a volume count since its engine process started, those of the daemon since the daemon did:
// rate() and increase() see through both.
package metrics

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/virt-cow/virt-cow/internal/api"
)

const (
	maxScrapes    = 4                // at the same time; more are refused with 503
	statusTimeout = 20 * time.Second // to ask all engines
)

// Handler answers GET with the metrics of what status returns at that moment, and of this process. A status of nil
// is answered with 503.
func Handler(status func(context.Context) *api.DaemonStatus) http.Handler {
	return handler(func(ctx context.Context) prometheus.Collector {
		if s := status(ctx); s != nil {
			return collector{s, time.Now()}
		}
		return nil
	})
}

// handler shows what collect returns, a collector a scrape.
func handler(collect func(context.Context) prometheus.Collector) http.Handler {
	process := prometheus.NewRegistry()
	process.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	places := make(chan struct{}, maxScrapes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "GET only", http.StatusMethodNotAllowed)
			return
		}
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		default:
			http.Error(w, "too many scrapes at the same time", http.StatusServiceUnavailable)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), statusTimeout)
		defer cancel()
		c := collect(ctx)
		if c == nil {
			http.Error(w, "there is no status", http.StatusServiceUnavailable)
			return
		}
		// One collector a scrape: what it shows is one status, and nothing is shared between scrapes.
		own := prometheus.NewRegistry()
		own.MustRegister(c)
		promhttp.HandlerFor(prometheus.Gatherers{own, process}, promhttp.HandlerOpts{
			ErrorHandling: promhttp.ContinueOnError, // what is right is shown, whatever one volume says
		}).ServeHTTP(w, r)
	})
}
