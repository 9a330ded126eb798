package main

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"footfall/internal/visitor"
	"maps"
	"slices"
	"time"
)

// settingTakeover holds the time and the numbers of the import, once it was done.
const settingTakeover = "flask_import"

// imported is the report of an import.
type imported struct {
	rows, visitors, visits int64
	skipped, skippedVisits int64 // rows without an address, and their visits
	took                   time.Duration
}

// takeoverPending reports whether the database has the table of the Flask
// application that this program replaces, visitor(id, ip, visits), and it was
// not imported yet. A table visitor with other columns is not its.
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

// takeOver imports the original's visitors if that is pending; else the report
// is nil. It all happens in tx: an import that is cut off leaves nothing, and
// none happens twice. The old table stays as it is.
func takeOver(ctx context.Context, tx *sql.Tx, h visitor.Hasher) (*imported, error) {
	pending, err := takeoverPending(ctx, tx)
	if err != nil || !pending {
		return nil, err
	}
	start := time.Now()
	report, visits, err := readOriginal(ctx, tx, h)
	if err != nil {
		return nil, fmt.Errorf("import visitors: %w", err)
	}
	ids := slices.SortedFunc(maps.Keys(visits), func(a, b visitor.ID) int { return bytes.Compare(a[:], b[:]) }) // the order in which batches lock rows
	for chunk := range slices.Chunk(ids, 10_000) {                                                              // keeps a statement's arguments small
		added, err := insertImported(ctx, tx, chunk, visits)
		if err != nil {
			return nil, fmt.Errorf("import visitors: %w", err)
		}
		report.visitors += added
	}
	if _, err := tx.ExecContext(ctx, `
		UPDATE totals SET
			visits            = visits + $1,
			visitors          = visitors + $2,
			imported_visits   = imported_visits + $1,
			imported_visitors = imported_visitors + $2`, report.visits, report.visitors); err != nil {
		return nil, fmt.Errorf("import visitors: %w", err)
	}
	report.took = time.Since(start)
	return report, writeSetting(ctx, tx, settingTakeover, fmt.Sprintf("%s rows=%d visitors=%d visits=%d skipped=%d",
		start.UTC().Format(time.RFC3339), report.rows, report.visitors, report.visits, report.skipped))
}

// readOriginal returns the visits of each visitor in the original's table.
// Several of its rows may be one visitor.
func readOriginal(ctx context.Context, tx *sql.Tx, h visitor.Hasher) (*imported, map[visitor.ID]int64, error) {
	rows, err := tx.QueryContext(ctx, `
		SELECT COALESCE(ip, ''), GREATEST(COALESCE(visits, 0), 0)
		FROM visitor`)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	var report imported
	sums := map[visitor.ID]int64{}
	for rows.Next() {
		var ip string
		var visits int64
		if err := rows.Scan(&ip, &visits); err != nil {
			return nil, nil, err
		}
		report.rows++
		client, ok := visitor.Parse(ip)
		if !ok {
			report.skipped++
			report.skippedVisits += visits
			continue
		}
		sums[h.ID(client)] += visits
		report.visits += visits
	}
	return &report, sums, rows.Err()
}

// insertImported adds visits that belong to no day, and returns how many of the
// visitors are new: footfall may have counted some of them already.
func insertImported(ctx context.Context, tx *sql.Tx, visitors []visitor.ID, visits map[visitor.ID]int64) (added int64, err error) {
	ids := make([][]byte, len(visitors))
	sums := make([]int64, len(visitors))
	for i, id := range visitors {
		ids[i], sums[i] = id[:], visits[id]
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
		FROM imported`, ids, sums).Scan(&added)
	return added, err
}
