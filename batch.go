package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"footfall/internal/postgres"
)

// errWriterGone: the writer's row is gone or at another batch. The batch was not
// applied, unless by an earlier try, before that happened.
var errWriterGone = postgres.Refuse("writers changed under this process (restored database?)")

// applyBatch commits visits as batch `number` of `writer`, which must follow the
// writer's last batch, and returns their receipt. It may be called again with the same
// arguments when an answer was lost: what is already committed is not applied
// twice, and gives the same numbers. It is for one goroutine, the recorder's.
// ids must be distinct and in rising order: every instance locks visitors in this
// order, then the day, then the totals, so no two of them wait for each other.
func (s *store) applyBatch(ctx context.Context, writer, number int64, date time.Time, ids [][]byte, visits []int64) (receipt, error) {
	known, query := s.past, applyBatchSQL+` FROM done`
	if !known.isFresh(date) {
		known, query = past{}, applyBatchSQL+pastSQL+` FROM done`
	}
	var r receipt
	err := s.onBatches(ctx, func(conn *sql.Conn) (err error) {
		r, s.past, err = scanReceipt(date, known, conn.QueryRowContext(ctx, query, s.batchArgs(writer, number, date, ids, visits)...))
		switch {
		case errors.Is(err, sql.ErrNoRows):
			r, s.past, err = s.replayBatch(ctx, conn, writer, number, date)
		case postgres.IsUndefined(err):
			err = errNoCount
		}
		return err
	})
	if err != nil {
		s.past = past{} // the next connection may lead to another server
		return receipt{}, fmt.Errorf("commit batch: %w", err)
	}
	return r, nil
}

func (s *store) batchArgs(writer, number int64, date time.Time, ids [][]byte, visits []int64) []any {
	var sum int64
	for _, n := range visits {
		sum += n
	}
	return []any{writer, number, date.Format(time.DateOnly), ids, visits, sum, s.fingerprint}
}

// errNotSent: the error came before anything was sent to the database.
var errNotSent = errors.New("no connection to the database")

// onBatches runs do on the recorder's connection, which is given up after an
// error: its state is unknown, and a server that has become read-only would
// refuse on it forever.
func (s *store) onBatches(ctx context.Context, do func(*sql.Conn) error) error {
	conn, err := s.batches.Conn(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	defer conn.Close()
	s.warned.Store(nil)
	err = do(conn)
	if warning := s.warned.Load(); err == nil && warning != nil {
		// Such as 01000, that the wait for a synchronous standby was canceled: the
		// answer is that of a commit, which only this server has.
		err = fmt.Errorf("%w: %s", postgres.ErrUnconfirmed, warning.Message)
	}
	if err != nil {
		conn.Raw(func(any) error { return driver.ErrBadConn })
	}
	return err
}

// A batch is one statement: one round trip, one transaction. Each part reads
// the RETURNING of the one before, which fixes their order; without a row in
// writer none has anything to do. $1 writer, $2 number, $3 day, $4 visitors,
// $5 their visits, $6 the sum of these, $7 the visitor key's fingerprint. Each
// says its type: behind a pooler (default_query_exec_mode=exec) the driver does
// not ask the server for it, and unnest of unknown arrays is refused as
// ambiguous (42725).
const applyBatchSQL = `
	WITH writer AS (
		SELECT id
		FROM writers
		WHERE id = $1::bigint AND batch = $2::bigint - 1
			AND EXISTS (SELECT FROM totals)
			AND EXISTS (SELECT FROM settings WHERE name = 'visitor_key_fingerprint' AND value = $7::text)
		FOR UPDATE
	), visit AS (
		SELECT v.id, v.visits
		FROM writer, unnest($4::bytea[], $5::bigint[]) AS v (id, visits)
		ORDER BY v.id
	), visitor AS (
		INSERT INTO visitors AS old (id, visits, first_seen, last_seen)
		SELECT id, visits, $3::date, $3::date
		FROM visit
		ON CONFLICT (id) DO UPDATE SET
			visits    = old.visits + excluded.visits,
			last_seen = GREATEST(old.last_seen, excluded.last_seen),
			seen_day_before = CASE
				WHEN old.last_seen < excluded.last_seen     THEN old.last_seen = excluded.last_seen - 1
				WHEN old.last_seen = excluded.last_seen + 1 THEN true
				ELSE old.seen_day_before END,
			first_of_day = CASE
				WHEN old.last_seen < excluded.last_seen     THEN true
				WHEN old.last_seen = excluded.last_seen + 1 THEN NOT old.seen_day_before
				ELSE old.last_seen IS NULL END
		RETURNING id, visits, first_of_day, first_of_day AND first_seen IS NOT DISTINCT FROM $3::date AS is_new
	), batch AS (
		SELECT
			array_agg(CASE WHEN is_new THEN -visits ELSE visits END ORDER BY id) AS numbers,
			count(*) FILTER (WHERE first_of_day) AS visitors,
			count(*) FILTER (WHERE is_new) AS new_visitors
		FROM visitor
		HAVING count(*) > 0
	), today AS (
		INSERT INTO days AS old (day, visits, visitors, new_visitors)
		SELECT $3::date, $6::bigint, visitors, new_visitors
		FROM batch
		ON CONFLICT (day) DO UPDATE SET
			visits       = old.visits + excluded.visits,
			visitors     = old.visitors + excluded.visitors,
			new_visitors = old.new_visitors + excluded.new_visitors
		RETURNING visits, visitors, new_visitors
	), total AS (
		UPDATE totals SET
			visits   = totals.visits + $6::bigint,
			visitors = totals.visitors + batch.new_visitors
		FROM batch, today
		RETURNING totals.visits, totals.visitors
	), done AS (
		UPDATE writers SET
			batch        = $2::bigint,
			committed_at = now(),
			receipt      = ARRAY[total.visits, total.visitors, today.visits, today.visitors, today.new_visitors] || batch.numbers
		FROM total, today, batch
		WHERE writers.id = $1::bigint
		RETURNING receipt
	)
	SELECT receipt`

// replayBatch returns the receipt of a batch that applyBatchSQL found already
// applied. It updates rather than reads, so that its commit waits for the
// synchronous standby; the original commit may not have (a backend terminated
// during that wait leaves a commit that only this server has).
func (s *store) replayBatch(ctx context.Context, conn *sql.Conn, writer, number int64, date time.Time) (receipt, past, error) {
	r, p, err := scanReceipt(date, past{}, conn.QueryRowContext(ctx, `
		UPDATE writers
		SET committed_at = now()
		WHERE id = $1::bigint AND batch = $2::bigint
		RETURNING receipt`+pastSQL,
		writer, number, date.Format(time.DateOnly)))
	if !errors.Is(err, sql.ErrNoRows) {
		return r, p, err
	}
	return receipt{}, past{}, s.whyNot(ctx, conn)
}

// whyNot returns why applyBatchSQL applied nothing.
func (s *store) whyNot(ctx context.Context, q postgres.Queryer) error {
	var hasTotals bool
	var fingerprint string
	if err := q.QueryRowContext(ctx, `SELECT `+stateSQL).Scan(&hasTotals, &fingerprint); err != nil {
		return err
	}
	if err := s.refuses(hasTotals, fingerprint); err != nil {
		return err
	}
	return errWriterGone
}

// tryVisit applies a batch of one and rolls it back: an error means that a visit
// would not be counted now.
func (s *store) tryVisit(ctx context.Context, date time.Time) error {
	return s.onBatches(ctx, func(conn *sql.Conn) error {
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() // for the early returns
		writer := rand.Int64()
		visitor := sha256.Sum256([]byte("no visitor"))
		if _, err := tx.ExecContext(ctx, `INSERT INTO writers (id) VALUES ($1)`, writer); err != nil {
			return fmt.Errorf("try a visit: %w", err)
		}
		batch := tx.QueryRowContext(ctx, applyBatchSQL+pastSQL+` FROM done`, s.batchArgs(writer, 1, date, [][]byte{visitor[:16]}, []int64{1})...)
		_, _, err = scanReceipt(date, past{}, batch)
		if errors.Is(err, sql.ErrNoRows) {
			err = s.whyNot(ctx, tx)
		}
		if err != nil {
			return fmt.Errorf("try a visit: %w", err)
		}
		if err := tx.Rollback(); err != nil {
			return fmt.Errorf("try a visit: %w", err)
		}
		// A commit, as it may be what fails: on a full disk, or without a synchronous standby.
		if _, err := conn.ExecContext(ctx, `UPDATE totals SET visits = visits`); err != nil {
			return fmt.Errorf("try a commit: %w", err)
		}
		return nil
	})
}

// newWriter makes a row in writers for this process and returns its id. It
// removes the rows of processes that died more than a day ago.
func (s *store) newWriter(ctx context.Context) (id int64, err error) {
	err = s.onBatches(ctx, func(conn *sql.Conn) error {
		if _, err := conn.ExecContext(ctx, `
			DELETE FROM writers
			WHERE committed_at < now() - interval '1 day'`); err != nil {
			return fmt.Errorf("remove old writers: %w", err)
		}
		id = rand.Int64()
		if _, err := conn.ExecContext(ctx, `INSERT INTO writers (id) VALUES ($1)`, id); err != nil {
			return fmt.Errorf("add a writer: %w", err)
		}
		return nil
	})
	return id, err
}

// removeWriter takes a process's row away when it ends.
func (s *store) removeWriter(ctx context.Context, id int64) error {
	err := postgres.Repeat(ctx, func() error {
		_, err := s.batches.ExecContext(ctx, `DELETE FROM writers WHERE id = $1`, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove the writer: %w", err)
	}
	return nil
}
