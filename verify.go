package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/jackc/pgx/v5/pgconn"
)

// verifyCommand recounts and prints each comparison.
func verifyCommand(ctx context.Context, cfg config, out io.Writer) error {
	store := openStore(cfg.Database)
	defer store.close()
	checks, err := store.verify(ctx)
	if err != nil {
		return err
	}
	wrong := 0
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, c := range checks {
		verdict := "ok"
		if c.kept != c.sum {
			verdict = "DIFFERENT"
			wrong++
		}
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\n", c.what, c.kept, c.sum, verdict)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d comparisons differ: restore from a backup, or look for what wrote to the tables beside footfall", wrong, len(checks))
	}
	return nil
}

// check is one line of verify: two numbers that must be equal.
type check struct {
	what      string
	kept, sum int64
}

// verify recounts everything in one snapshot.
func (s *store) verify(ctx context.Context) ([]check, error) {
	tx, err := s.reads.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	defer tx.Rollback() // nothing to keep
	rows, err := tx.QueryContext(ctx, `
		WITH rows AS (
			SELECT sum(visits) AS visits, count(*) AS visitors FROM visitors
		), by_day AS (
			SELECT sum(visits) AS visits, sum(new_visitors) AS new_visitors FROM days
		), latest AS (
			SELECT max(day) AS day FROM days
		)
		SELECT * FROM (
			SELECT 1, 'all visits = sum over visitors + forgotten', totals.visits, (COALESCE(rows.visits, 0) + forgotten_visits)::bigint FROM totals, rows
			UNION ALL
			SELECT 2, 'all visitors = rows of visitors + forgotten', totals.visitors, rows.visitors + forgotten_visitors FROM totals, rows
			UNION ALL
			SELECT 3, 'all visits = sum over days + imported', totals.visits, (COALESCE(by_day.visits, 0) + imported_visits)::bigint FROM totals, by_day
			UNION ALL
			SELECT 4, 'all visitors = new ones over days + imported', totals.visitors, (COALESCE(by_day.new_visitors, 0) + imported_visitors)::bigint FROM totals, by_day
			UNION ALL
			SELECT 5, 'days whose new visitors differ from rows + forgotten', 0, count(*)
			FROM (SELECT first_seen AS day, count(*) AS n FROM visitors WHERE first_seen IS NOT NULL GROUP BY first_seen) AS seen
			FULL JOIN days USING (day)
			WHERE COALESCE(seen.n, 0) + COALESCE(days.forgotten_new, 0) <> COALESCE(days.new_visitors, 0)
			UNION ALL
			SELECT 6, 'visitors of the latest day = rows + forgotten', days.visitors, days.forgotten + (SELECT count(*) FROM visitors WHERE last_seen = days.day)
			FROM days JOIN latest USING (day)
			UNION ALL
			SELECT 7, 'visitors of the day before it = rows + forgotten', days.visitors,
				days.forgotten + (SELECT count(*) FROM visitors WHERE last_seen = days.day OR last_seen = days.day + 1 AND seen_day_before)
			FROM days JOIN latest ON days.day = latest.day - 1
		) AS checks (n, what, kept, recounted)
		ORDER BY n`)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && (pg.Code == "42P01" || pg.Code == "42703") { // undefined_table, undefined_column
		return nil, errors.New("verify: this database holds no count yet, or an older program's: run footfall migrate, or look at the database's name in DATABASE_URL")
	}
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	defer rows.Close()
	var checks []check
	for rows.Next() {
		var n int
		var c check
		if err := rows.Scan(&n, &c.what, &c.kept, &c.sum); err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
		checks = append(checks, c)
	}
	return checks, rows.Err()
}
