package main

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// settingTakeover holds the time and the numbers of the import, once it was done.
const settingTakeover = "flask_import"

// takeoverChunk is how many rows are read and written at a time.
const takeoverChunk = 10_000

// takeOver imports the visitors of the Flask application that this program
// replaces, from its table visitor(id, ip, visits), if the database has it and
// they were not imported before. A table visitor with other columns is not its.
// It all happens in tx: an import that is cut off leaves nothing, and none
// happens twice. The old table stays as it is.
func takeOver(ctx context.Context, tx *sql.Tx, h hasher, log *slog.Logger) error {
	var found bool
	if err := tx.QueryRowContext(ctx, `
		SELECT to_regclass('alembic_version') IS NOT NULL
			AND 2 = (
				SELECT count(*)
				FROM pg_attribute
				WHERE attrelid = to_regclass('visitor') AND attname IN ('ip', 'visits')
			)
			AND NOT EXISTS (SELECT FROM settings WHERE name = $1)`, settingTakeover).Scan(&found); err != nil {
		return fmt.Errorf("look for the original's table: %w", err)
	}
	if !found {
		return nil
	}
	start := time.Now()
	if _, err := tx.ExecContext(ctx, `
		DECLARE original NO SCROLL CURSOR FOR
		SELECT COALESCE(ip, ''), GREATEST(COALESCE(visits, 0), 0)
		FROM visitor`); err != nil {
		return fmt.Errorf("import visitors: %w", err)
	}
	var rows, skipped, skippedVisits, visits, visitors int64
	for {
		chunk, err := fetchOriginal(ctx, tx)
		if err != nil {
			return fmt.Errorf("import visitors: %w", err)
		}
		if len(chunk) == 0 {
			break
		}
		sums := map[visitorID]int64{}
		for _, o := range chunk {
			rows++
			addr, ok := parseForwarded(o.ip)
			if !ok {
				skipped++
				skippedVisits += o.visits
				continue
			}
			sums[h.visitor(addr)] += o.visits
			visits += o.visits
		}
		added, err := importVisitors(ctx, tx, sums)
		if err != nil {
			return fmt.Errorf("import visitors: %w", err)
		}
		visitors += added
		if rows%(10*takeoverChunk) == 0 {
			log.Info("importing visitors", "rows", rows)
		}
	}
	if _, err := tx.ExecContext(ctx, `
		UPDATE totals SET
			visits            = visits + $1,
			visitors          = visitors + $2,
			imported_visits   = imported_visits + $1,
			imported_visitors = imported_visitors + $2`, visits, visitors); err != nil {
		return fmt.Errorf("import visitors: %w", err)
	}
	report := fmt.Sprintf("%s rows=%d visitors=%d visits=%d skipped=%d", start.UTC().Format(time.RFC3339), rows, visitors, visits, skipped)
	if err := writeSetting(ctx, tx, settingTakeover, report); err != nil {
		return err
	}
	log.Info("imported visitors of the original", "rows", rows, "visitors", visitors, "visits", visits, "ms", time.Since(start).Milliseconds())
	if skipped > 0 {
		log.Warn("rows without an address were not imported", "rows", skipped, "visits", skippedVisits)
	}
	return nil
}

// original is one row of the Flask application's table.
type original struct {
	ip     string
	visits int64
}

// fetchOriginal reads the next rows of the cursor; none at its end.
func fetchOriginal(ctx context.Context, tx *sql.Tx) ([]original, error) {
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(`FETCH %d FROM original`, takeoverChunk))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var chunk []original
	for rows.Next() {
		var o original
		if err := rows.Scan(&o.ip, &o.visits); err != nil {
			return nil, err
		}
		chunk = append(chunk, o)
	}
	return chunk, rows.Err()
}

// importVisitors adds visits that belong to no day, and returns how many of
// the visitors were new.
func importVisitors(ctx context.Context, tx *sql.Tx, sums map[visitorID]int64) (added int64, err error) {
	ids := make([][]byte, 0, len(sums))
	for id := range sums {
		ids = append(ids, id[:])
	}
	slices.SortFunc(ids, slices.Compare) // the order in which batches lock rows
	visits := make([]int64, len(ids))
	for i, id := range ids {
		visits[i] = sums[visitorID(id)]
	}
	// A row that the statement inserted has no earlier version: xmax is 0.
	err = tx.QueryRowContext(ctx, `
		WITH imported AS (
			INSERT INTO visitors AS old (id, visits)
			SELECT id, visits
			FROM unnest($1::bytea[], $2::bigint[]) AS v (id, visits)
			ORDER BY id
			ON CONFLICT (id) DO UPDATE SET visits = old.visits + excluded.visits
			RETURNING xmax = 0 AS inserted
		)
		SELECT count(*) FILTER (WHERE inserted)
		FROM imported`, ids, visits).Scan(&added)
	return added, err
}
