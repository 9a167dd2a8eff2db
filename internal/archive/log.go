package archive

import (
	"bytes"
	"context"

	"github.com/kopia/kopia/repo/logging"
	"github.com/rs/zerolog"
)

// withLog has kopia log into ours, as details: what matters comes back as errors.
func withLog(ctx context.Context, log zerolog.Logger) context.Context {
	if log.GetLevel() > zerolog.DebugLevel {
		return logging.WithLogger(ctx, nil)
	}
	return logging.WithLogger(ctx, logging.ToWriter(lines{log}))
}

type lines struct{ log zerolog.Logger }

func (l lines) Write(p []byte) (int, error) {
	l.log.Debug().Str("from", "kopia").Msg(string(bytes.TrimSpace(p)))
	return len(p), nil
}
