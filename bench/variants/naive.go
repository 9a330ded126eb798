//go:build ignore

// What most counters do: one upsert and a count(*) over all rows for each visit.
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
		if err := s.reads.QueryRowContext(ctx, `
			INSERT INTO visitors AS old (id, visits, first_seen, last_seen)
			VALUES ($1, 1, $2, $2)
			ON CONFLICT (id) DO UPDATE SET visits = old.visits + 1, last_seen = excluded.last_seen
			RETURNING visits`, id[:], utcDay(time.Now()).Format(time.DateOnly)).Scan(&c.number); err != nil {
			return c, err
		}
		err = s.reads.QueryRowContext(ctx, `SELECT count(*), sum(visits)::bigint FROM visitors`).Scan(&c.visitors, &c.visits)
		return c, err
	}
}
