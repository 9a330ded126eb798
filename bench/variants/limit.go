//go:build ignore

// This recorder stores nothing: with it the service is as fast as its web
// server can be. It stands in for recorder.go in a build of the benchmark's own.
package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"
)

const visitTimeout = 1800 * time.Millisecond

var errBusy, errStopping = errors.New("busy"), errors.New("stopping")

type recorder struct {
	visits atomic.Int64
	shared atomic.Pointer[answer]
}

// answer is renewed every 32 visits, as often as a batch of the real recorder
// would be with 64 clients.
type answer struct {
	receipt receipt
	shared  shared
}

type visit struct {
	*answer
	n int64
}

func (v visit) number() int64 { return v.n }

func newRecorder(s *store, log *slog.Logger, m *metrics) *recorder {
	r := &recorder{}
	r.renew(0)
	return r
}

func (r *recorder) renew(n int64) {
	today := utcDay(time.Now())
	a := &answer{}
	a.receipt = receipt{tally: tally{visits: n, visitors: n, since: today, database: "none", days: history(today, nil)}}
	r.shared.Store(a)
}

func (r *recorder) record(id visitorID) (visit, error) {
	n := r.visits.Add(1)
	if n%32 == 0 {
		r.renew(n)
	}
	return visit{r.shared.Load(), n}, nil
}

func (r *recorder) close(context.Context) error { return nil }
