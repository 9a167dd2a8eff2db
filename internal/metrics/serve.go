package metrics

import (
	"context"
	"net/http"

	"github.com/rs/zerolog"
)

// Serve is written elsewhere.
func Serve(ctx context.Context, listen string, h http.Handler, log zerolog.Logger) error { return nil }
