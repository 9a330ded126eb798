//go:build ignore

// This recorder does what a careful programmer does first: one transaction a
// visit, an upsert and a row of totals. The benchmark builds the program with it
// instead of recorder.go.
package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"footfall/internal/visitor"
)

const visitTimeout = 1800 * time.Millisecond

var errNotCounted = errors.New("not counted")

type recorder struct{ store *store }

type visit struct {
	receipt *receipt
	n       int64
}

func (v visit) standing() standing        { return standing{visits: v.n} }
func (v visit) share(make func() any) any { return make() }

func newRecorder(s *store, log *slog.Logger, m *metrics) *recorder {
	s.reads.SetMaxOpenConns(32)
	s.reads.SetMaxIdleConns(32)
	return &recorder{s}
}

func (r *recorder) record(id visitor.ID) (visit, error) {
	ctx, cancel := context.WithTimeout(context.Background(), visitTimeout)
	defer cancel()
	today := utcDay(time.Now())
	v := visit{receipt: &receipt{}}
	v.receipt.tally = tally{background: background{since: today, database: "PostgreSQL"}, days: append(pastDays(today, nil), day{date: today})}
	t := &v.receipt.tally
	err := r.store.reads.QueryRowContext(ctx, `
		WITH visitor AS (
			INSERT INTO visitors AS old (id, visits, first_seen, last_seen)
			VALUES ($1, 1, $2, $2)
			ON CONFLICT (id) DO UPDATE SET visits = old.visits + 1, last_seen = excluded.last_seen
			RETURNING visits
		), total AS (
			UPDATE totals SET visits = totals.visits + 1, visitors = visitors + (visitor.visits = 1)::int
			FROM visitor
			RETURNING totals.visits, visitors
		)
		SELECT visitor.visits, total.visits, total.visitors
		FROM visitor, total`, id[:], today.Format(time.DateOnly)).Scan(&v.n, &t.visits, &t.visitors)
	return v, err
}

func (r *recorder) close(context.Context) error { return nil }

func (r *recorder) lastFailed() bool { return false }
