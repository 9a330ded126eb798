package main

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
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

// store holds every SQL statement of the service but the migrations.
type store struct {
	reads *sql.DB
	// The recorder has one connection of its own, so that no crowd of readers
	// can keep a batch waiting.
	batches *sql.DB
}

// maxReads bounds the connections that answer everything but counted visits.
const maxReads = 4

func openStore(cfg *pgx.ConnConfig) *store {
	s := &store{reads: stdlib.OpenDB(*cfg), batches: stdlib.OpenDB(*cfg)}
	s.reads.SetMaxOpenConns(maxReads)
	s.reads.SetMaxIdleConns(maxReads)
	s.reads.SetConnMaxIdleTime(time.Minute)
	s.batches.SetMaxOpenConns(1)
	return s
}

func (s *store) close() error {
	return errors.Join(s.reads.Close(), s.batches.Close())
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
// twice, and gives the same numbers. ids must be distinct and in rising order:
// every instance locks visitors in this order, then the day, then the totals,
// so no two of them wait for each other.
func (s *store) applyBatch(ctx context.Context, writer, number int64, date time.Time, ids [][]byte, visits []int64) (receipt, error) {
	var sum int64
	for _, n := range visits {
		sum += n
	}
	var r receipt
	err := s.onBatches(ctx, func(conn *sql.Conn) (err error) {
		r, err = scanReceipt(date, conn.QueryRowContext(ctx, applyBatchSQL,
			writer, number, date.Format(time.DateOnly), ids, visits, sum))
		if errors.Is(err, sql.ErrNoRows) {
			r, err = replayBatch(ctx, conn, writer, number, date)
		}
		return err
	})
	if err != nil {
		return receipt{}, fmt.Errorf("commit batch: %w", err)
	}
	return r, nil
}

// onBatches runs do on the recorder's connection, which is given up after an
// error: in what state it is, is unknown, and a server that has become
// read-only would refuse for ever on it.
func (s *store) onBatches(ctx context.Context, do func(*sql.Conn) error) error {
	conn, err := s.batches.Conn(ctx)
	if err != nil {
		return err
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
	SELECT receipt, ` + surroundingsSQL + `
	FROM done`

// surroundingsSQL is what a tally holds beside the numbers that a visit
// changes: counting since, the server's version, the days before $3 as
// (days before it, visits, visitors, new visitors).
const surroundingsSQL = `
	(SELECT since FROM totals),
	current_setting('server_version'),
	ARRAY(
		SELECT unnest(ARRAY[$3::date - day, visits, visitors, new_visitors])
		FROM days
		WHERE day < $3::date AND day > $3::date - 30
	)`

// replayBatch returns the receipt of a batch that applyBatchSQL found already
// applied. It writes, so that its own commit waits for what the batch's may
// not have waited for to the end: a backend that is terminated while it waits
// for a synchronous standby leaves a commit that only this server has.
func replayBatch(ctx context.Context, conn *sql.Conn, writer, number int64, date time.Time) (receipt, error) {
	r, err := scanReceipt(date, conn.QueryRowContext(ctx, `
		UPDATE writers
		SET committed_at = now()
		WHERE id = $1::bigint AND batch = $2::bigint
		RETURNING receipt, `+surroundingsSQL,
		writer, number, date.Format(time.DateOnly)))
	if !errors.Is(err, sql.ErrNoRows) {
		return r, err
	}
	var exists bool
	if err := conn.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM writers WHERE id = $1::bigint)`, writer).Scan(&exists); err != nil {
		return receipt{}, err
	}
	if exists {
		return receipt{}, errOutOfStep
	}
	return receipt{}, errWriterGone
}

// scanReceipt reads one row of receipt and surroundings.
func scanReceipt(date time.Time, row *sql.Row) (receipt, error) {
	var numbers []int64
	var past []int64
	var r receipt
	var version string
	types := pgtype.NewMap()
	if err := row.Scan(types.SQLScanner(&numbers), &r.since, &version, types.SQLScanner(&past)); err != nil {
		return receipt{}, err
	}
	const head = 5 // totals and today stand before the visitors' numbers
	if len(numbers) < head {
		return receipt{}, fmt.Errorf("receipt has %d numbers, want at least %d", len(numbers), head)
	}
	r.visits, r.visitors, r.numbers = numbers[0], numbers[1], numbers[head:]
	r.database = serverName(version)
	r.days = history(date, past)
	today := &r.days[historyDays-1]
	today.visits, today.visitors, today.newVisitors = numbers[2], numbers[3], numbers[4]
	return r, nil
}

// history lays out the rows of surroundingsSQL as the 30 days up to date.
func history(date time.Time, past []int64) []day {
	days := make([]day, historyDays)
	for i := range days {
		days[i].date = date.AddDate(0, 0, i-historyDays+1)
	}
	for row := range slices.Chunk(past, 4) {
		d := &days[historyDays-1-int(row[0])]
		d.visits, d.visitors, d.newVisitors = row[1], row[2], row[3]
	}
	return days
}

// serverName drops the packager's addition: "15.18 (Debian …)".
func serverName(version string) string {
	number, _, _ := strings.Cut(version, " ")
	return "PostgreSQL " + number
}

// newWriter makes a row in writers for this process and returns its id. Rows
// of processes that died more than a day ago go.
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
	if _, err := s.batches.ExecContext(ctx, `DELETE FROM writers WHERE id = $1`, id); err != nil {
		return fmt.Errorf("remove the writer: %w", err)
	}
	return nil
}

// retryable tells whether a failed batch is worth another try before its time
// is over. Sending it again is safe in any case; this only spares the waiters
// a wait for nothing. The codes are in appendix A of PostgreSQL's manual.
func retryable(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false // its time is over
	}
	if errors.Is(err, errOutOfStep) {
		return false
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return true // no answer of the server: the connection broke, or none was had
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

// read runs a query that changes nothing. After a restart of the database each
// of the pool's connections may be a dead one, which shows only in use.
func read(query func() error) error {
	err := query()
	for range maxReads {
		if err == nil || !retryable(err) {
			break
		}
		err = query()
	}
	return err
}

// look reads the current state and how often visitor was counted; 0: never.
func (s *store) look(ctx context.Context, date time.Time, visitor []byte) (*tally, int64, error) {
	var r receipt
	err := read(func() (err error) {
		r, err = scanReceipt(date, s.reads.QueryRowContext(ctx, `
			SELECT
				ARRAY[
					totals.visits, totals.visitors,
					COALESCE(today.visits, 0), COALESCE(today.visitors, 0), COALESCE(today.new_visitors, 0),
					COALESCE((SELECT visits FROM visitors WHERE id = $1::bytea), 0)
				], `+strings.ReplaceAll(surroundingsSQL, "$3", "$2")+`
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

// schemaVersion returns the newest migration that the database has.
func (s *store) schemaVersion(ctx context.Context) (version int, err error) {
	err = read(func() error {
		return s.reads.QueryRowContext(ctx, `SELECT COALESCE(max(version), 0) FROM schema_migrations`).Scan(&version)
	})
	if err != nil {
		return 0, fmt.Errorf("read the schema's version: %w", err)
	}
	return version, nil
}

// Names in settings.
const (
	settingKey         = "visitor_key"             // hex; only where none is configured
	settingFingerprint = "visitor_key_fingerprint" // of the key in use, wherever it is kept
)

// visitorKey returns the hasher of this database. With a configured key that
// is the one; else the database's own, which made is when there is none yet.
// Another key than before would count everyone anew, so it is refused.
func visitorKey(ctx context.Context, tx *sql.Tx, configured, fresh []byte) (hasher, error) {
	kept, err := readSetting(ctx, tx, settingKey)
	if err != nil {
		return hasher{}, err
	}
	fingerprint, err := readSetting(ctx, tx, settingFingerprint)
	if err != nil {
		return hasher{}, err
	}
	h := hasher{key: configured}
	switch {
	case configured != nil:
	case kept != "":
		key, err := hex.DecodeString(kept)
		if err != nil {
			return hasher{}, errors.New("the visitor key kept in the database is damaged: restore table settings from a backup")
		}
		h.key = key
	case fingerprint != "":
		return hasher{}, fmt.Errorf("VISITOR_KEY is not set, but this database was counted with one (fingerprint %s): set it again, any other would count everyone anew", fingerprint)
	default:
		h.key = fresh
		if err := writeSetting(ctx, tx, settingKey, hex.EncodeToString(fresh)); err != nil {
			return hasher{}, err
		}
	}
	switch fingerprint {
	case h.fingerprint():
		return h, nil
	case "":
		return h, writeSetting(ctx, tx, settingFingerprint, h.fingerprint())
	}
	return hasher{}, fmt.Errorf("VISITOR_KEY has the fingerprint %s, but this database was counted with %s: set the earlier key again, this one would count everyone anew", h.fingerprint(), fingerprint)
}

// readSetting returns "" for a setting that is not there.
func readSetting(ctx context.Context, q queryer, name string) (string, error) {
	var value string
	err := q.QueryRowContext(ctx, `SELECT value FROM settings WHERE name = $1`, name).Scan(&value)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("read setting %s: %w", name, err)
	}
	return value, nil
}

func writeSetting(ctx context.Context, tx *sql.Tx, name, value string) error {
	if _, err := tx.ExecContext(ctx, `INSERT INTO settings (name, value) VALUES ($1, $2)`, name, value); err != nil {
		return fmt.Errorf("write setting %s: %w", name, err)
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
			SELECT 1, 'all visits = sum over visitors', totals.visits, COALESCE(rows.visits, 0)::bigint FROM totals, rows
			UNION ALL
			SELECT 2, 'all visitors = rows of visitors', totals.visitors, rows.visitors FROM totals, rows
			UNION ALL
			SELECT 3, 'all visits = sum over days + imported', totals.visits, (COALESCE(by_day.visits, 0) + imported_visits)::bigint FROM totals, by_day
			UNION ALL
			SELECT 4, 'all visitors = new ones over days + imported', totals.visitors, (COALESCE(by_day.new_visitors, 0) + imported_visitors)::bigint FROM totals, by_day
			UNION ALL
			SELECT 5, 'days whose new visitors differ from the rows', 0, count(*)
			FROM (SELECT first_seen AS day, count(*) AS n FROM visitors WHERE first_seen IS NOT NULL GROUP BY first_seen) AS seen
			FULL JOIN days USING (day)
			WHERE COALESCE(seen.n, 0) <> COALESCE(days.new_visitors, 0)
			UNION ALL
			SELECT 6, 'visitors of the latest day = rows', days.visitors, (SELECT count(*) FROM visitors WHERE last_seen = days.day)
			FROM days JOIN latest USING (day)
			UNION ALL
			SELECT 7, 'visitors of the day before it = rows', days.visitors,
				(SELECT count(*) FROM visitors WHERE last_seen = days.day OR last_seen = days.day + 1 AND seen_day_before)
			FROM days JOIN latest ON days.day = latest.day - 1
		) AS checks (n, what, kept, recounted)
		ORDER BY n`)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "42P01" { // undefined_table
		return nil, errors.New("verify: this database holds no count yet: run footfall migrate, or look at the database's name in DATABASE_URL")
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

// compareIDs orders visitors as PostgreSQL orders bytea.
func compareIDs(a, b visitorID) int { return bytes.Compare(a[:], b[:]) }
