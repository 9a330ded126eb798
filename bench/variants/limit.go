//go:build ignore

// This recorder stores nothing: with it the service is as fast as its web
// server can be. It stands in for recorder.go in a build of the benchmark's own.
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

const visitTimeout = 1800 * time.Millisecond

var errBusy, errStopping = errors.New("busy"), errors.New("stopping")

type recorder struct {
	visits atomic.Int64
	every  int64
	shared atomic.Pointer[answer]
}

// answer is renewed as often as the real recorder committed a batch under the
// same load: every VISITS_A_BATCH visits, which the benchmark measured before.
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
	every, err := strconv.ParseInt(os.Getenv("VISITS_A_BATCH"), 10, 64)
	if err != nil || every < 1 {
		panic("VISITS_A_BATCH is not a number from 1")
	}
	r := &recorder{every: every}
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
	if n%r.every == 0 {
		r.renew(n)
	}
	return visit{r.shared.Load(), n}, nil
}

func (r *recorder) close(context.Context) error { return nil }
