//go:build ignore

// This recorder stores nothing: with it the service is as fast as its web
// server can be. The benchmark builds the program with it instead of recorder.go.
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"footfall/internal/visitor"
)

const visitTimeout = 1800 * time.Millisecond

var errNotCounted = errors.New("not counted")

type recorder struct {
	visits atomic.Int64
	every  int64
	latest atomic.Pointer[answer]
}

// answer is renewed as often as the real recorder committed a batch under the
// same load: every VISITS_A_BATCH visits, which the benchmark measured before.
type answer struct {
	receipt *receipt
	once    sync.Once
	shared  any
}

func (a *answer) share(make func() any) any {
	a.once.Do(func() { a.shared = make() })
	return a.shared
}

type visit struct {
	*answer
	n int64
}

func (v visit) standing() standing { return standing{visits: v.n} }

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
	t := tally{visits: n, visitors: n, background: background{since: today, database: "none"}, days: append(pastDays(today, nil), day{date: today})}
	r.latest.Store(&answer{receipt: &receipt{tally: t}})
}

func (r *recorder) record(id visitor.ID) (visit, error) {
	n := r.visits.Add(1)
	if n%r.every == 0 {
		r.renew(n)
	}
	return visit{r.latest.Load(), n}, nil
}

func (r *recorder) close(context.Context) error { return nil }

func (r *recorder) lastFailed() bool { return false }
