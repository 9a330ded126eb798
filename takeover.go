package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"

	"footfall/internal/visitor"
)

// settingTakeover holds the time and the numbers of the import, once it was done.
const settingTakeover = "flask_import"

// imported says what an import did.
type imported struct {
	rows, visitors, visits int64
	skipped, skippedVisits int64 // rows without an address, and their visits
}

func (i imported) log(log *slog.Logger) {
	if i.rows > 0 {
		log.Info("imported visitors of the original", "rows", i.rows, "visitors", i.visitors, "visits", i.visits)
	}
	if i.skipped > 0 {
		log.Warn("rows without an address were not imported", "rows", i.skipped, "visits", i.skippedVisits)
	}
}

// takeoverPending reports whether the database has the table of the Flask
// application that this program replaces, visitor(id, ip, visits), and it was
// not imported yet. A table visitor without these columns is ignored.
func takeoverPending(ctx context.Context, q queryer) (pending bool, err error) {
	err = q.QueryRowContext(ctx, `
		SELECT to_regclass('alembic_version') IS NOT NULL
			AND 2 = (
				SELECT count(*)
				FROM pg_attribute
				WHERE attrelid = to_regclass('visitor') AND attname IN ('ip', 'visits')
			)
			AND NOT EXISTS (SELECT FROM settings WHERE name = $1)`, settingTakeover).Scan(&pending)
	if err != nil {
		return false, fmt.Errorf("look for the original's table: %w", err)
	}
	return pending, nil
}

// importChunk is how many rows an import holds in memory.
const importChunk = 10_000

// takeOver imports the original's visitors if that is pending; else the report
// is empty. It all happens in tx: an import that is cut off leaves nothing, and
// none happens twice. The old table stays as it is. Visitors are locked in order
// within a chunk only: where an instance counts meanwhile, PostgreSQL may find a
// deadlock, and both sides try again.
func takeOver(ctx context.Context, tx *sql.Tx, h visitor.Hasher) (report imported, err error) {
	pending, err := takeoverPending(ctx, tx)
	if err != nil || !pending {
		return report, err
	}
	start := time.Now()
	// The column is text, or inet, whose text ends in "/32".
	if _, err := tx.ExecContext(ctx, `
		DECLARE original NO SCROLL CURSOR FOR
		SELECT COALESCE(split_part(ip::text, '/', 1), ''), GREATEST(COALESCE(visits, 0), 0)
		FROM visitor`); err != nil {
		return report, fmt.Errorf("import visitors: %w", err)
	}
	for last := int64(-1); report.rows > last; {
		last = report.rows
		if err := importNext(ctx, tx, h, &report); err != nil {
			return report, fmt.Errorf("import visitors: %w", err)
		}
	}
	if _, err := tx.ExecContext(ctx, `
		UPDATE totals SET
			visits            = visits + $1,
			visitors          = visitors + $2,
			imported_visits   = imported_visits + $1,
			imported_visitors = imported_visitors + $2`, report.visits, report.visitors); err != nil {
		return report, fmt.Errorf("import visitors: %w", err)
	}
	return report, writeSetting(ctx, tx, settingTakeover, fmt.Sprintf("%s rows=%d visitors=%d visits=%d skipped=%d",
		start.UTC().Format(time.RFC3339), report.rows, report.visitors, report.visits, report.skipped))
}

// importNext imports the cursor's next rows and adds them to the report; none
// are left when it adds no row. The visits belong to no day.
func importNext(ctx context.Context, tx *sql.Tx, h visitor.Hasher, report *imported) error {
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(`FETCH %d FROM original`, importChunk))
	if err != nil {
		return err
	}
	defer rows.Close()
	var ids [][]byte
	var counts []int64
	for rows.Next() {
		var ip string
		var visits int64
		if err := rows.Scan(&ip, &visits); err != nil {
			return err
		}
		report.rows++
		client, ok := visitor.Parse(ip)
		if !ok {
			report.skipped++
			report.skippedVisits += visits
			continue
		}
		id := h.ID(client)
		ids, counts = append(ids, id[:]), append(counts, visits)
		report.visits += visits
	}
	if err := rows.Err(); err != nil {
		return err
	}
	// Several rows may be one visitor, and footfall may have counted some already:
	// only a row that the statement inserted has no earlier version, and xmax 0.
	var added int64
	err = tx.QueryRowContext(ctx, `
		WITH imported AS (
			INSERT INTO visitors AS old (id, visits)
			SELECT id, sum(visits)
			FROM unnest($1::bytea[], $2::bigint[]) AS v (id, visits)
			GROUP BY id
			ORDER BY id
			ON CONFLICT (id) DO UPDATE SET visits = old.visits + excluded.visits
			RETURNING xmax = 0 AS inserted
		)
		SELECT count(*) FILTER (WHERE inserted)
		FROM imported`, ids, counts).Scan(&added)
	report.visitors += added
	return err
}

// carryOver makes the count begin at the numbers of an earlier counter, in place
// of those carried over before, and returns all visits and visitors.
func (s *store) carryOver(ctx context.Context, visits, visitors int64) (allVisits, allVisitors int64, err error) {
	err = repeat(ctx, func() error {
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
		return &usageError{errors.New("carry-over: name the earlier counter's visits, and its visitors if it knew them, which are no more: footfall carry-over VISITS [VISITORS]")}
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
