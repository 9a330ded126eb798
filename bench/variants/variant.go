//go:build ignore

// What the variants of recorder.go share: the page is renewed as often as
// footfall commits a batch under the same load, every VISITS_A_BATCH visits, which
// the benchmark has just measured. It shows 30 days, as footfall's does.
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

// counted is what a store answers to a visit.
type counted struct{ number, visits, visitors int64 }

type recorder struct {
	count  func(context.Context, visitor.ID) (counted, error)
	every  int64
	all    atomic.Int64
	latest atomic.Pointer[shown]
}

type shown struct {
	receipt *receipt
	once    sync.Once
	page    any
}

func (s *shown) share(make func() any) any {
	s.once.Do(func() { s.page = make() })
	return s.page
}

type visit struct {
	*shown
	counted
}

type standing struct{ visits, place int64 }

func (v visit) standing() standing { return standing{visits: v.number} }

func newRecorder(s *store, _ *slog.Logger, _ *metrics) *recorder {
	every, err := strconv.ParseInt(os.Getenv("VISITS_A_BATCH"), 10, 64)
	if err != nil || every < 1 {
		panic("VISITS_A_BATCH is not a number from 1")
	}
	return &recorder{count: openVariant(s), every: every}
}

func (r *recorder) record(id visitor.ID) (visit, error) {
	ctx, cancel := context.WithTimeout(context.Background(), visitTimeout)
	defer cancel()
	c, err := r.count(ctx, id)
	if err != nil {
		return visit{}, err
	}
	if r.all.Add(1)%r.every == 1 || r.latest.Load() == nil {
		today := utcDay(time.Now())
		t := tally{visits: c.visits, visitors: c.visitors, days: append(pastDays(today, nil), day{today, c.visits, c.visitors, c.visitors})}
		for i := range t.days[:historyDays-1] {
			t.days[i].visits, t.days[i].visitors, t.days[i].newVisitors = 40000+int64(i)*37, 1000, 30
		}
		t.since, t.database = today.AddDate(0, 0, 1-historyDays), "PostgreSQL 15.18"
		r.latest.Store(&shown{receipt: &receipt{tally: t}})
	}
	return visit{r.latest.Load(), c}, nil
}

func (r *recorder) close(context.Context) error { return nil }

func (r *recorder) lastFailed() bool { return false }
