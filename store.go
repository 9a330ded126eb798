package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"footfall/internal/connect"
	"footfall/internal/visitor"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// historyDays is how many days the page shows, today among them.
const historyDays = 30

// store holds the SQL statements of the count. Each of its pools serves one
// purpose, so that a crowd of one kind cannot keep another waiting.
type store struct {
	reads   *sql.DB // answers everything but counted visits
	batches *sql.DB // one connection, the recorder's
	probes  *sql.DB // one connection, of /readyz

	fingerprint string // of the key that visitors are counted by; set before the first visit

	warned atomic.Pointer[pgconn.Notice] // the last warning on the connection of batches
	past   past                          // of the last batch
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
		db := sql.OpenDB(connect.New(cfg, lifetime, pinIsolation))
		db.SetMaxOpenConns(connections)
		db.SetMaxIdleConns(connections)
		db.SetConnMaxLifetime(lifetime)
		return db
	}
	cfg = cfg.Copy()
	// The form of dates that the driver reads, whatever the database, the role or
	// the URL says. Poolers know this parameter, unlike others.
	maps.DeleteFunc(cfg.RuntimeParams, func(name, _ string) bool { return strings.EqualFold(name, "datestyle") })
	cfg.RuntimeParams["datestyle"] = "ISO"
	s := &store{reads: open(maxReads), probes: open(1)}
	cfg = cfg.Copy()
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.SeverityUnlocalized == "WARNING" {
			s.warned.Store(n)
		}
	}
	s.batches = open(1)
	return s
}

// pinIsolation keeps a default of the database or the role away: batches that
// meet on a row wait for one another under read committed, and would fail under
// a stricter level.
func pinIsolation(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, `SET default_transaction_isolation = 'read committed'`); err != nil {
		conn.Close(ctx)
		return fmt.Errorf("set the isolation level: %w", err)
	}
	return nil
}

func (s *store) close() error {
	return errors.Join(s.reads.Close(), s.batches.Close(), s.probes.Close())
}

// tally is the state of the count right after a commit, or when it was read.
type tally struct {
	visits   int64
	visitors int64
	days     []day // the last 30, today last; a day without visits is there with zeros
	background
}

// background is the part of a tally that no batch changes.
type background struct {
	since           time.Time // when counting began
	database        string    // "PostgreSQL 17.2"
	carriedVisits   int64     // part of visits that an earlier counter had counted
	carriedVisitors int64
	evidence        []evidence
}

// evidence is the latest result of one kind of check.
type evidence struct {
	Kind   string    `json:"kind"` // recount; restore: the same on a restored backup
	Agreed bool      `json:"agreed"`
	At     time.Time `json:"checked_at"`
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

// daysCSV returns every day from the first with a visit to date, a day without
// one with zeros.
func (s *store) daysCSV(ctx context.Context, date time.Time) (csv []byte, err error) {
	err = repeat(ctx, func() error {
		return s.reads.QueryRowContext(ctx, `
			SELECT E'day,visits,visitors,new_visitors\n' || COALESCE(string_agg(
				concat_ws(',', to_char($1::date - ago, 'YYYY-MM-DD'), COALESCE(visits, 0), COALESCE(visitors, 0), COALESCE(new_visitors, 0)) || E'\n',
				'' ORDER BY ago DESC), '')
			FROM generate_series(0, $1::date - (SELECT min(day) FROM days)) AS ago
			LEFT JOIN days ON day = $1::date - ago`,
			date.Format(time.DateOnly)).Scan(&csv)
	})
	if err != nil {
		return nil, fmt.Errorf("read the days: %w", err)
	}
	return csv, nil
}

// stateSQL reads what counting needs: the row of totals, and the fingerprint of
// the visitor key.
const stateSQL = `EXISTS (SELECT FROM totals), COALESCE((SELECT value FROM settings WHERE name = 'visitor_key_fingerprint'), '')`

// refuses returns why nothing is counted in a database of this state, or nil.
func (s *store) refuses(hasTotals bool, fingerprint string) error {
	switch {
	case fingerprint != s.fingerprint:
		return errOtherKey
	case !hasTotals:
		return errNoTotals
	}
	return nil
}

// probe reads whether visits could be counted. What only a person can change is
// a [refusal].
func (s *store) probe(ctx context.Context) error {
	var schema int
	var readOnly, hasTotals bool
	var fingerprint string
	err := repeat(ctx, func() error {
		return s.probes.QueryRowContext(ctx, `
			SELECT COALESCE(max(version), 0), current_setting('transaction_read_only') = 'on', `+stateSQL+`
			FROM schema_migrations`).Scan(&schema, &readOnly, &hasTotals, &fingerprint)
	})
	needs := len(ourMigrations())
	switch {
	case isUndefined(err):
		return errNoCount
	case err != nil:
		return fmt.Errorf("read the schema's version: %w", err)
	case schema < needs:
		return refuse("%s", behind(schema, needs))
	case readOnly:
		return refuse("the database is read-only")
	}
	return s.refuses(hasTotals, fingerprint)
}

// errNoCount: a table or column of ours is missing.
var errNoCount = refuse("this database holds no count yet, or an older program's: run footfall migrate, or look at the database's name in DATABASE_URL")

// isUndefined reports whether err is PostgreSQL's undefined_table or undefined_column.
func isUndefined(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == "42P01" || pg.Code == "42703")
}

// explainConnect words a failed connection in one sentence without the
// password. The driver's own error has a line for each address that it tried; the
// first says enough, unless a server answered: that one is the last.
func explainConnect(err error) error {
	failed, ok := errors.AsType[*pgconn.ConnectError](err)
	if !ok {
		return err
	}
	lines := strings.Split(failed.Error(), "\n\t")
	if _, answered := errors.AsType[*pgconn.PgError](err); answered {
		lines = append(lines[:1], lines[len(lines)-1])
	}
	return fmt.Errorf("DATABASE_URL: %s", strings.TrimSpace(strings.Join(lines[:min(2, len(lines))], " ")))
}

// retryable reports whether what failed may succeed when it is tried again.
// Sending a batch again is safe in any case; this only saves visitors a
// pointless wait. The codes are in appendix A of PostgreSQL's manual.
func retryable(err error) bool {
	if _, refused := errors.AsType[*refusal](err); refused {
		return false
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return errors.Is(err, errWarned) || connectionFailed(err)
	}
	switch pg.Code {
	case "", // a proxy's own words
		"25006", // read_only_sql_transaction: the old primary after a switch-over
		"26000", // invalid_sql_statement_name: a pooler gave us another backend
		"55P03", // lock_not_available
		"57014", // query_canceled, by an administrator or a statement_timeout
		"XX000": // internal_error: the code of Supavisor's and Neon's proxies for passing trouble
		return true
	case "0A000": // feature_not_supported
		return pg.Routine == "RevalidateCachedQuery" // a column's type changed under a prepared statement
	}
	switch pg.Code[:min(2, len(pg.Code))] {
	case "08", // connection exception
		"40", // transaction rollback: deadlock, serialization
		"53", // insufficient resources
		"57", // operator intervention: shutdown, crash, starting up
		"58": // system error
		return true
	}
	return false
}

// connectionFailed reports whether err says that a connection broke, or could
// not be made in time. An answer that the driver cannot read says neither.
func connectionFailed(err error) bool {
	_, network := errors.AsType[net.Error](err)
	_, connect := errors.AsType[*pgconn.ConnectError](err)
	return network || connect || pgconn.SafeToRetry(err) || slices.ContainsFunc([]error{
		io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, driver.ErrBadConn, sql.ErrConnDone, context.DeadlineExceeded, context.Canceled,
	}, func(target error) bool { return errors.Is(err, target) })
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

// refusal is a state of the database that only a person can fix: trying again
// does not help.
type refusal struct{ msg string }

func (r *refusal) Error() string { return r.msg }

func refuse(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

// queryer is a *sql.DB, *sql.Conn or *sql.Tx.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// forget removes the row of a visitor and returns its visits; 0: there was none.
// Totals and days keep them, and how many visitors they have without a row. Like
// a batch it locks the visitor, then the days, then the totals.
func (s *store) forget(ctx context.Context, id visitor.ID) (visits int64, err error) {
	err = repeat(ctx, func() error {
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

// recorded keeps the result of a check for the page.
func (s *store) recorded(ctx context.Context, kind string, agreed bool) error {
	err := repeat(ctx, func() error {
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
