package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"
)

// historyDays is how many days the page shows, today among them.
const historyDays = 30

// store holds the SQL statements of the count. Each of its pools serves one
// purpose, so that a crowd of one kind cannot keep another waiting.
type store struct {
	reads   *sql.DB // answers everything but counted visits
	batches *sql.DB // one connection, the recorder's
	probes  *sql.DB // one connection, of /readyz

	past past // of the last batch
}

const (
	maxReads = 4
	// A connection ends after this time even if it is busy, so that none stays
	// on a server that was demoted.
	connLifetime = time.Minute
)

func openStore(cfg *pgx.ConnConfig) *store { return openStoreWith(cfg, connLifetime) }

func openStoreWith(cfg *pgx.ConnConfig, lifetime time.Duration) *store {
	open := func(connections int) *sql.DB {
		db := stdlib.OpenDB(*cfg, stdlib.OptionAfterConnect(pinIsolation))
		db.SetMaxOpenConns(connections)
		db.SetMaxIdleConns(connections)
		db.SetConnMaxLifetime(lifetime)
		return db
	}
	return &store{reads: open(maxReads), batches: open(1), probes: open(1)}
}

// pinIsolation keeps a default of the database or the role away: batches that
// meet on a row wait for one another under read committed, and would fail under
// a stricter level.
func pinIsolation(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, `SET default_transaction_isolation = 'read committed'`); err != nil {
		return fmt.Errorf("set the isolation level: %w", err)
	}
	return nil
}

func (s *store) close() error {
	return errors.Join(s.reads.Close(), s.batches.Close(), s.probes.Close())
}

// explainConnect words a failed connection in one sentence: what the server
// said, or the first cause. The driver's own error has a line for each address
// that it tried, several for one host. Other errors stay as they are.
func explainConnect(err error) error {
	failed, ok := errors.AsType[*pgconn.ConnectError](err)
	if !ok {
		return err
	}
	cause := firstCause(failed).Error()
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		cause = pg.Message
	}
	return fmt.Errorf("DATABASE_URL: connect to database %q on %s as user %q: %s",
		failed.Config.Database, failed.Config.Host, failed.Config.User, strings.ReplaceAll(cause, "\n", " "))
}

// firstCause follows the first branch of a tree of errors to its end.
func firstCause(err error) error {
	for {
		var cause error
		switch e := err.(type) {
		case *net.OpError, *net.DNSError: // their causes say too little
		case interface{ Unwrap() []error }:
			cause = e.Unwrap()[0]
		case interface{ Unwrap() error }:
			cause = e.Unwrap()
		}
		if cause == nil {
			return err
		}
		err = cause
	}
}

// tally is the state of the count right after a commit, or when it was read.
type tally struct {
	visits   int64
	visitors int64
	since    time.Time // when counting began
	days     []day     // the last 30, today last; a day without visits is there with zeros
	database string    // "PostgreSQL 17.2"
}

func (t *tally) today() day { return t.days[len(t.days)-1] }

// day is what was counted on one UTC day.
type day struct {
	date        time.Time // midnight UTC
	visits      int64
	visitors    int64
	newVisitors int64
}

// utcDay returns the day of t: its midnight, UTC.
func utcDay(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

// receipt is what a committed batch gives back.
type receipt struct {
	tally
	numbers []int64 // for each visitor of the batch, in its order: all visits so far
}

var (
	// errWriterGone: the writer's row is not there; the batch was not applied.
	errWriterGone = errors.New("this process's row in writers is gone")
	// errOutOfStep: the writer's row is at another batch than the one before.
	errOutOfStep = errors.New("this process's row in writers is at another batch")
)

// applyBatch commits visits as batch number of writer, the number after its
// last one, and returns their receipt. It may be called again with the same
// arguments when an answer was lost: what is already committed is not applied
// twice, and gives the same numbers. It is for one goroutine, the recorder's. ids
// must be distinct and in rising order:
// every instance locks visitors in this order, then the day, then the totals,
// so no two of them wait for each other.
func (s *store) applyBatch(ctx context.Context, writer, number int64, date time.Time, ids [][]byte, visits []int64) (receipt, error) {
	known, query := s.past, applyBatchSQL+` FROM done`
	if !known.isFresh(date) {
		known, query = past{}, applyBatchSQL+pastSQL+` FROM done`
	}
	var r receipt
	err := s.onBatches(ctx, func(conn *sql.Conn) (err error) {
		r, s.past, err = scanReceipt(date, known, conn.QueryRowContext(ctx, query, batchArgs(writer, number, date, ids, visits)...))
		if errors.Is(err, sql.ErrNoRows) {
			r, s.past, err = replayBatch(ctx, conn, writer, number, date)
		}
		return err
	})
	if err != nil {
		s.past = past{} // the next connection may lead to another server
		return receipt{}, fmt.Errorf("commit batch: %w", err)
	}
	return r, nil
}

func batchArgs(writer, number int64, date time.Time, ids [][]byte, visits []int64) []any {
	var sum int64
	for _, n := range visits {
		sum += n
	}
	return []any{writer, number, date.Format(time.DateOnly), ids, visits, sum}
}

// errNotSent: the error came before anything was sent to the database.
var errNotSent = errors.New("no connection to the database")

// onBatches runs do on the recorder's connection, which is given up after an
// error: its state is unknown, and a server that has become read-only would
// refuse on it for ever.
func (s *store) onBatches(ctx context.Context, do func(*sql.Conn) error) error {
	conn, err := s.batches.Conn(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	defer conn.Close()
	if err = do(conn); err != nil {
		conn.Raw(func(any) error { return driver.ErrBadConn })
	}
	return err
}

// A batch is one statement: one round trip, one transaction. Each part reads
// the RETURNING of the one before, which fixes their order; without a row in
// writer none has anything to do. $1 writer, $2 number, $3 day, $4 visitors,
// $5 their visits, $6 the sum of these. Each says its type: behind a pooler
// (default_query_exec_mode=exec) the driver does not ask the server for it, and
// unnest of unknown arrays is refused as ambiguous (42725).
const applyBatchSQL = `
	WITH writer AS (
		SELECT id
		FROM writers
		WHERE id = $1::bigint AND batch = $2::bigint - 1
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
			array_agg(visits ORDER BY id) AS numbers,
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

// pastSQL reads a past: counting since, the server's version, the days before
// $3 as (days before it, visits, visitors, new visitors).
const pastSQL = `,
	(SELECT since FROM totals),
	current_setting('server_version'),
	ARRAY(
		SELECT unnest(ARRAY[$3::date - day, visits, visitors, new_visitors])
		FROM days
		WHERE day < $3::date AND day > $3::date - 30
	)`

// past is what a tally holds beside the numbers that its batch changed. It is
// read with a batch only when it can have changed: on another day, and so after
// a batch that came late; on another connection; and every few seconds, as
// another instance may have counted for a day that is over.
type past struct {
	since    time.Time
	database string
	days     []day // the 29 before date
	date     time.Time
	read     time.Time
}

// pastAge is how long a page may lack what another instance counted for a day
// that is over.
const pastAge = 5 * time.Second

// isFresh reports whether p still serves a batch of date.
func (p past) isFresh(date time.Time) bool {
	return p.date.Equal(date) && time.Since(p.read) < pastAge
}

// replayBatch returns the receipt of a batch that applyBatchSQL found already
// applied. It writes, so that its own commit waits for what the batch's may
// not have waited for to the end: a backend that is terminated while it waits
// for a synchronous standby leaves a commit that only this server has.
func replayBatch(ctx context.Context, conn *sql.Conn, writer, number int64, date time.Time) (receipt, past, error) {
	r, p, err := scanReceipt(date, past{}, conn.QueryRowContext(ctx, `
		UPDATE writers
		SET committed_at = now()
		WHERE id = $1::bigint AND batch = $2::bigint
		RETURNING receipt`+pastSQL,
		writer, number, date.Format(time.DateOnly)))
	if !errors.Is(err, sql.ErrNoRows) {
		return r, p, err
	}
	var exists bool
	if err := conn.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM writers WHERE id = $1::bigint)`, writer).Scan(&exists); err != nil {
		return receipt{}, past{}, err
	}
	if exists {
		return receipt{}, past{}, errOutOfStep
	}
	return receipt{}, past{}, errWriterGone
}

// scanReceipt reads a row of numbers; known is the past that belongs to them,
// or empty: then the row has it, too.
func scanReceipt(date time.Time, known past, row *sql.Row) (receipt, past, error) {
	var numbers, days []int64
	var version string
	types := pgtype.NewMap()
	columns := []any{types.SQLScanner(&numbers)}
	p := known
	if p.days == nil {
		columns = append(columns, &p.since, &version, types.SQLScanner(&days))
	}
	if err := row.Scan(columns...); err != nil {
		return receipt{}, past{}, err
	}
	const head = 5 // totals and today come before the visitors' numbers
	if len(numbers) < head {
		return receipt{}, past{}, fmt.Errorf("receipt has %d numbers, want at least %d", len(numbers), head)
	}
	if p.days == nil {
		p.date, p.read, p.days = date, time.Now(), pastDays(date, days)
		number, _, _ := strings.Cut(version, " ") // without the packager's addition: "15.18 (Debian …)"
		p.database = "PostgreSQL " + number
	}
	return receipt{
		tally: tally{
			visits: numbers[0], visitors: numbers[1], since: p.since, database: p.database,
			days: append(slices.Clone(p.days), day{date, numbers[2], numbers[3], numbers[4]}),
		},
		numbers: numbers[head:],
	}, p, nil
}

// pastDays lays out the rows of pastSQL as the 29 days before date.
func pastDays(date time.Time, rows []int64) []day {
	days := make([]day, historyDays-1)
	for i := range days {
		days[i].date = date.AddDate(0, 0, i-len(days))
	}
	for row := range slices.Chunk(rows, 4) {
		d := &days[len(days)-int(row[0])]
		d.visits, d.visitors, d.newVisitors = row[1], row[2], row[3]
	}
	return days
}

// tryVisit does what a batch does and takes it back: an error means that a
// visit would not be counted now.
func (s *store) tryVisit(ctx context.Context, date time.Time) error {
	return s.onBatches(ctx, func(conn *sql.Conn) error {
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() // does nothing after Commit
		writer := rand.Int64()
		visitor := sha256.Sum256([]byte("no visitor"))
		for _, step := range []struct {
			sql  string
			args []any
		}{
			{`SAVEPOINT visit`, nil},
			{`INSERT INTO writers (id) VALUES ($1)`, []any{writer}},
			{applyBatchSQL + ` FROM done`, batchArgs(writer, 1, date, [][]byte{visitor[:16]}, []int64{1})},
			{`ROLLBACK TO visit`, nil},
			{`UPDATE totals SET visits = visits`, nil}, // something to commit
		} {
			if _, err := tx.ExecContext(ctx, step.sql, step.args...); err != nil {
				return fmt.Errorf("try a visit: %w", err)
			}
		}
		return tx.Commit()
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
	err := repeat(ctx, func() error {
		_, err := s.batches.ExecContext(ctx, `DELETE FROM writers WHERE id = $1`, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove the writer: %w", err)
	}
	return nil
}

// retryable reports whether what failed may succeed when it is tried again.
// Sending a batch again is safe in any case; this only spares the waiters a wait
// for nothing. The codes are in appendix A of PostgreSQL's manual.
func retryable(err error) bool {
	if _, refused := errors.AsType[*refusal](err); refused || errors.Is(err, errOutOfStep) {
		return false
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return true // no answer of the server: the connection broke, or could not be made
	}
	switch pg.Code {
	case "25006", // read_only_sql_transaction: the old primary after a switch-over
		"26000", // invalid_sql_statement_name: a pooler gave us another backend
		"55P03", // lock_not_available
		"57014": // query_canceled, by an administrator or a statement_timeout
		return true
	}
	switch pg.Code[:2] {
	case "08", // connection exception
		"40", // transaction rollback: deadlock, serialization
		"53", // insufficient resources
		"57", // operator intervention: shutdown, crash, starting up
		"58": // system error
		return true
	}
	return false
}

// repeat runs a statement that may run twice. After a restart of the database
// each connection of a pool may be a dead one, which shows only in use.
func repeat(ctx context.Context, query func() error) error {
	err := query()
	for range maxReads {
		if err == nil || ctx.Err() != nil || !retryable(err) {
			break
		}
		err = query()
	}
	return err
}

// look reads the current state and how often visitor was counted; 0: never.
func (s *store) look(ctx context.Context, date time.Time, visitor []byte) (*tally, int64, error) {
	var r receipt
	err := repeat(ctx, func() (err error) {
		r, _, err = scanReceipt(date, past{}, s.reads.QueryRowContext(ctx, `
			SELECT
				ARRAY[
					totals.visits, totals.visitors,
					COALESCE(today.visits, 0), COALESCE(today.visitors, 0), COALESCE(today.new_visitors, 0),
					COALESCE((SELECT visits FROM visitors WHERE id = $1::bytea), 0)
				]`+strings.ReplaceAll(pastSQL, "$3", "$2")+`
			FROM totals
			LEFT JOIN days AS today ON today.day = $2::date`,
			visitor, date.Format(time.DateOnly)))
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("read the totals: %w", err)
	}
	return &r.tally, r.numbers[0], nil
}

// state is what /readyz asks the database for.
type state struct {
	schema   int  // the newest migration that the database has
	readOnly bool // a standby, or closed to writes
}

func (s *store) state(ctx context.Context) (now state, err error) {
	err = repeat(ctx, func() error {
		return s.probes.QueryRowContext(ctx, `
			SELECT COALESCE(max(version), 0), current_setting('transaction_read_only') = 'on'
			FROM schema_migrations`).Scan(&now.schema, &now.readOnly)
	})
	if err != nil {
		return state{}, fmt.Errorf("read the schema's version: %w", err)
	}
	return now, nil
}

// compareIDs orders visitors as PostgreSQL orders bytea.
func compareIDs(a, b visitorID) int { return bytes.Compare(a[:], b[:]) }
