//go:build ignore

// What a careful programmer does first: one transaction per visit, an upsert and
// a row of totals.
package main

import (
	"context"
	"time"

	"footfall/internal/visitor"
)

func openVariant(s *store) func(context.Context, visitor.ID) (counted, error) {
	s.reads.SetMaxOpenConns(32)
	s.reads.SetMaxIdleConns(32)
	return func(ctx context.Context, id visitor.ID) (c counted, err error) {
		err = s.reads.QueryRowContext(ctx, `
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
			FROM visitor, total`, id[:], utcDay(time.Now()).Format(time.DateOnly)).Scan(&c.number, &c.visits, &c.visitors)
		return c, err
	}
}
