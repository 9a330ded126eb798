package main

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"footfall/internal/postgres"
	"footfall/internal/visitor"
)

// verifyCommand recounts and prints each comparison. With record the page shows
// when that was, and whether the numbers agreed.
func verifyCommand(ctx context.Context, cfg config, out io.Writer, record bool) error {
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
	if record {
		if err := store.recorded(ctx, "recount", wrong == 0); err != nil {
			return err
		}
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

// verify recomputes the totals, each day's new visitors, and the visitors of the
// last two days, in one snapshot. It always makes the same eight checks.
func (s *store) verify(ctx context.Context) ([]check, error) {
	tx, err := s.reads.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	defer tx.Rollback() // nothing to keep
	rows, err := tx.QueryContext(ctx, `
		WITH total AS (
			SELECT
				count(*) AS rows, COALESCE(sum(visits), 0) AS visits, COALESCE(sum(visitors), 0) AS visitors,
				sum(imported_visits) AS imported_visits, sum(imported_visitors) AS imported_visitors,
				sum(forgotten_visits) AS forgotten_visits, sum(forgotten_visitors) AS forgotten_visitors
			FROM totals
		), rows AS (
			SELECT sum(visits) AS visits, count(*) AS visitors FROM visitors
		), by_day AS (
			SELECT sum(visits) AS visits, sum(new_visitors) AS new_visitors FROM days
		), latest AS (
			SELECT max(day) AS day FROM days
		)
		SELECT what, kept::bigint, COALESCE(recounted, 0)::bigint FROM (
			SELECT 1, 'rows of totals = 1', rows, 1 FROM total
			UNION ALL
			SELECT 2, 'all visits = sum over visitors + forgotten', total.visits, COALESCE(rows.visits, 0) + forgotten_visits FROM total, rows
			UNION ALL
			SELECT 3, 'all visitors = rows of visitors + forgotten', total.visitors, rows.visitors + forgotten_visitors FROM total, rows
			UNION ALL
			SELECT 4, 'all visits = sum over days + imported', total.visits, COALESCE(by_day.visits, 0) + imported_visits FROM total, by_day
			UNION ALL
			SELECT 5, 'all visitors = new ones over days + imported', total.visitors, COALESCE(by_day.new_visitors, 0) + imported_visitors FROM total, by_day
			UNION ALL
			SELECT 6, 'days whose new visitors differ from rows + forgotten', 0, count(*)
			FROM (SELECT first_seen AS day, count(*) AS n FROM visitors WHERE first_seen IS NOT NULL GROUP BY first_seen) AS seen
			FULL JOIN days USING (day)
			WHERE COALESCE(seen.n, 0) + COALESCE(days.forgotten_new, 0) <> COALESCE(days.new_visitors, 0)
			UNION ALL
			SELECT 7, 'visitors of the latest day = rows + forgotten', COALESCE(days.visitors, 0),
				COALESCE(days.forgotten, 0) + (SELECT count(*) FROM visitors WHERE last_seen = latest.day)
			FROM latest LEFT JOIN days USING (day)
			UNION ALL
			SELECT 8, 'visitors of the day before it = rows + forgotten', COALESCE(days.visitors, 0),
				COALESCE(days.forgotten, 0) + (SELECT count(*) FROM visitors WHERE last_seen = latest.day - 1 OR last_seen = latest.day AND seen_day_before)
			FROM latest LEFT JOIN days ON days.day = latest.day - 1
		) AS checks (n, what, kept, recounted)
		ORDER BY n`)
	if postgres.IsUndefined(err) {
		return nil, errNoCount
	}
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	defer rows.Close()
	var checks []check
	for rows.Next() {
		var c check
		if err := rows.Scan(&c.what, &c.kept, &c.sum); err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
		checks = append(checks, c)
	}
	return checks, rows.Err()
}

// recorded keeps the result of a check for the page.
func (s *store) recorded(ctx context.Context, kind string, agreed bool) error {
	err := postgres.Repeat(ctx, func() error {
		_, err := s.reads.ExecContext(ctx, `
			INSERT INTO evidence (kind, agreed)
			VALUES ($1::text, $2::boolean)
			ON CONFLICT (kind) DO UPDATE SET agreed = excluded.agreed, checked_at = now()`, kind, agreed)
		return err
	})
	if err != nil {
		return fmt.Errorf("record the %s: %w", kind, err)
	}
	return nil
}

// forgetCommand removes what is kept of the visitors with these addresses, one per
// line, each in any form that a proxy writes. A line that is none is reported when
// the others are done. No message holds an address.
func forgetCommand(ctx context.Context, cfg config, out io.Writer, addresses io.Reader) error {
	store := openStore(cfg.Database)
	defer store.close()
	if err := requireSchema(ctx, store); err != nil {
		return err
	}
	h, _, err := findKey(ctx, store.reads, cfg.VisitorKey)
	if err != nil {
		return err
	}
	var wrong []error
	n := 0
	lines := bufio.NewScanner(addresses)
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		n++
		client, ok := visitor.Parse(lines.Text())
		if !ok {
			wrong = append(wrong, fmt.Errorf("forget: address %d must be written as 192.0.2.7 or 2001:db8::7", n))
			continue
		}
		visits, err := store.forget(ctx, h.ID(client))
		if err != nil {
			return fmt.Errorf("address %d: %w", n, err)
		}
		sentence := "no such visitor is stored"
		if number := group(visits); visits > 0 {
			sentence = fmt.Sprintf("removed one visitor with %s %s; the totals are unchanged", number, plural(number, "visit"))
		}
		if _, err := fmt.Fprintln(out, sentence); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read address %d: %w", n+1, err)
	}
	if n == 0 {
		wrong = append(wrong, errors.New("forget: no address given: write addresses on standard input, one per line"))
	}
	if len(wrong) > 0 {
		return &usageError{errors.Join(wrong...)}
	}
	return nil
}

// forget removes the row of a visitor and returns its visits; 0: there was none.
// Totals and days keep them, and how many visitors they have without a row. Like
// a batch it locks the visitor, then the days, then the totals.
func (s *store) forget(ctx context.Context, id visitor.ID) (visits int64, err error) {
	err = postgres.Repeat(ctx, func() error {
		return s.reads.QueryRowContext(ctx, `
			WITH gone AS (
				DELETE FROM visitors
				WHERE id = $1::bytea
				RETURNING visits, first_seen, last_seen, seen_day_before
			), of_days AS (
				UPDATE days SET
					forgotten     = forgotten + (day = last_seen OR day = last_seen - 1 AND seen_day_before)::int,
					forgotten_new = forgotten_new + COALESCE(day = first_seen, false)::int
				FROM gone
				WHERE day IN (first_seen, last_seen, last_seen - 1)
				RETURNING day
			)
			UPDATE totals SET
				forgotten_visits   = forgotten_visits + gone.visits,
				forgotten_visitors = forgotten_visitors + 1
			FROM gone, (SELECT count(*) FROM of_days) AS after_days
			RETURNING gone.visits`, id[:]).Scan(&visits)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("forget a visitor: %w", err)
	}
	return visits, nil
}

// carryOver makes the count begin at the numbers of an earlier counter, in place
// of those carried over before, and returns all visits and visitors.
func (s *store) carryOver(ctx context.Context, visits, visitors int64) (allVisits, allVisitors int64, err error) {
	err = postgres.Repeat(ctx, func() error {
		return s.reads.QueryRowContext(ctx, `
			UPDATE totals SET
				visits             = visits             + $1::bigint - carried_visits,
				visitors           = visitors           + $2::bigint - carried_visitors,
				imported_visits    = imported_visits    + $1::bigint - carried_visits,
				imported_visitors  = imported_visitors  + $2::bigint - carried_visitors,
				forgotten_visits   = forgotten_visits   + $1::bigint - carried_visits,
				forgotten_visitors = forgotten_visitors + $2::bigint - carried_visitors,
				carried_visits     = $1::bigint,
				carried_visitors   = $2::bigint
			RETURNING visits, visitors`, visits, visitors).Scan(&allVisits, &allVisitors)
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return 0, 0, errNoTotals
	case err != nil:
		return 0, 0, fmt.Errorf("carry over: %w", err)
	}
	return allVisits, allVisitors, nil
}

// carryOverCommand makes the count begin at the visits and visitors of an earlier
// counter, while services run or not. It sets these numbers: run again, with the
// same or with corrected ones, it adds nothing twice.
func carryOverCommand(ctx context.Context, cfg config, out io.Writer, args []string) error {
	const most = 1_000_000_000_000_000 // far from the end of bigint, and exact in JSON (2^53)
	numbers := []int64{0, 0}
	for i, arg := range args[:min(2, len(args))] {
		n, err := strconv.ParseUint(arg, 10, 64)
		if err != nil || n > most {
			return &usageError{fmt.Errorf("carry-over: %q must be a number of digits only, at most %d", arg, int64(most))}
		}
		numbers[i] = int64(n)
	}
	if len(args) < 1 || len(args) > 2 || numbers[1] > numbers[0] {
		return &usageError{errors.New("carry-over: name the earlier counter's visits, and if it knew them its visitors, at most as many: footfall carry-over VISITS [VISITORS]")}
	}
	store := openStore(cfg.Database)
	defer store.close()
	if err := requireSchema(ctx, store); err != nil {
		return err
	}
	visits, visitors, err := store.carryOver(ctx, numbers[0], numbers[1])
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "carried over: %s visits and %s visitors; now there are %s and %s in all\n", group(numbers[0]), group(numbers[1]), group(visits), group(visitors))
	return err
}

// requireSchema refuses a database that this program has not migrated.
func requireSchema(ctx context.Context, s *store) error {
	done, err := appliedMigrations(ctx, s.reads)
	if err != nil {
		return err
	}
	if needs := len(ourMigrations()); len(done) < needs {
		return fmt.Errorf("%s, or look at the database's name in DATABASE_URL", behind(len(done), needs))
	}
	return nil
}
