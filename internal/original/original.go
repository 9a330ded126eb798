// Package original imports the visitors of the Flask application that footfall
// replaces.
package original

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"time"

	"footfall/internal/postgres"
	"footfall/internal/visitor"
)

// setting holds the time and the numbers of the import, once it was done.
const setting = "flask_import"

// Report says what an import did.
type Report struct {
	rows, visitors, visits int64
	skipped, skippedVisits int64 // rows without an address, and their visits
}

// Log says it in the log; nothing if nothing was imported.
func (r Report) Log(log *slog.Logger) {
	if r.rows > 0 {
		log.Info("imported visitors of the original", "rows", r.rows, "visitors", r.visitors, "visits", r.visits)
	}
	if r.skipped > 0 {
		log.Warn("rows without an address were not imported", "rows", r.skipped, "visits", r.skippedVisits)
	}
}

// Pending reports whether the database has the table of the Flask
// application that this program replaces, visitor(id, ip, visits), and it was
// not imported yet. A table visitor without these columns is ignored.
func Pending(ctx context.Context, q postgres.Queryer) (pending bool, err error) {
	err = q.QueryRowContext(ctx, `
		SELECT to_regclass('alembic_version') IS NOT NULL
			AND 2 = (
				SELECT count(*)
				FROM pg_attribute
				WHERE attrelid = to_regclass('visitor') AND attname IN ('ip', 'visits')
			)
			AND NOT EXISTS (SELECT FROM settings WHERE name = $1)`, setting).Scan(&pending)
	if err != nil {
		return false, fmt.Errorf("look for the original's table: %w", err)
	}
	return pending, nil
}

// chunk is how many rows an import holds in memory.
const chunk = 10_000

// Import imports the original's visitors if that is pending; else the report
// is empty. It all happens in tx: an import that is cut off leaves nothing, and
// none happens twice. The old table stays as it is. Visitors are locked in order
// within a chunk only: where an instance counts meanwhile, PostgreSQL may find a
// deadlock, and both sides try again.
func Import(ctx context.Context, tx *sql.Tx, h visitor.Hasher) (report Report, err error) {
	pending, err := Pending(ctx, tx)
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
	_, err = tx.ExecContext(ctx, `INSERT INTO settings (name, value) VALUES ($1, $2)`, setting, fmt.Sprintf("%s rows=%d visitors=%d visits=%d skipped=%d",
		start.UTC().Format(time.RFC3339), report.rows, report.visitors, report.visits, report.skipped))
	if err != nil {
		return report, fmt.Errorf("import visitors: %w", err)
	}
	return report, nil
}

// importNext imports the cursor's next rows and adds them to the report; none
// are left when it adds no row. The visits belong to no day.
func importNext(ctx context.Context, tx *sql.Tx, h visitor.Hasher, report *Report) error {
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(`FETCH %d FROM original`, chunk))
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
