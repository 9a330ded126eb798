package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"footfall/internal/postgres"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
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

// connLifetime is when a connection ends even if it is busy, so that none stays
// on a server that was demoted.
const connLifetime = time.Minute

func openStore(cfg *pgx.ConnConfig) *store { return openStoreWith(cfg, connLifetime) }

func openStoreWith(cfg *pgx.ConnConfig, lifetime time.Duration) *store {
	open := func(connections int) *sql.DB {
		db := sql.OpenDB(postgres.New(cfg, lifetime, pinIsolation))
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
	s := &store{reads: open(postgres.MaxConns), probes: open(1)}
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

// receipt is what a committed batch gives back.
type receipt struct {
	tally
	numbers []int64 // for each visitor of the batch, in its order: all visits so far; negative for a new one
}

// pastSQL reads a past: counting since, what was carried over, the evidence as
// JSON, the server's version, the days before $3 as (days before it, visits,
// visitors, new visitors).
const pastSQL = `,
	(SELECT since FROM totals), (SELECT carried_visits FROM totals), (SELECT carried_visitors FROM totals),
	(SELECT COALESCE(json_agg(e ORDER BY kind), '[]')::text FROM evidence AS e),
	current_setting('server_version'),
	ARRAY(
		SELECT unnest(ARRAY[$3::date - day, visits, visitors, new_visitors])
		FROM days
		WHERE day < $3::date AND day > $3::date - 30
	)`

// past is the part of a tally that a batch does not change. It is read again on
// a new day, on a new connection, and every pastAge, since another instance may
// still count for an earlier day.
type past struct {
	background
	days []day // the 29 before date
	date time.Time
	read time.Time
}

// pastAge is how long a page may lack what another instance counted for a day
// that is over.
const pastAge = 5 * time.Second

// isFresh reports whether p still serves a batch of date.
func (p past) isFresh(date time.Time) bool {
	return p.date.Equal(date) && time.Since(p.read) < pastAge
}

// scanReceipt reads a row of numbers; known is the past that belongs to them,
// or empty: then the row has it as well.
func scanReceipt(date time.Time, known past, row *sql.Row) (receipt, past, error) {
	var numbers, days []int64
	var version, checks string
	types := pgtype.NewMap()
	columns := []any{types.SQLScanner(&numbers)}
	p := known
	if p.days == nil {
		columns = append(columns, &p.since, &p.carriedVisits, &p.carriedVisitors, &checks, &version, types.SQLScanner(&days))
	}
	if err := row.Scan(columns...); err != nil {
		return receipt{}, past{}, err
	}
	const head = 5 // totals and today come before the visitors' numbers
	if len(numbers) < head {
		return receipt{}, past{}, fmt.Errorf("receipt has %d numbers; it must have at least %d", len(numbers), head)
	}
	if p.days == nil {
		p.date, p.read, p.days = date, time.Now(), pastDays(date, days)
		number, _, _ := strings.Cut(version, " ") // without the packager's addition: "15.18 (Debian …)"
		p.database = "PostgreSQL " + number
		if err := json.Unmarshal([]byte(checks), &p.evidence); err != nil {
			return receipt{}, past{}, fmt.Errorf("read the evidence: %w", err)
		}
	}
	return receipt{
		tally: tally{
			visits: numbers[0], visitors: numbers[1], background: p.background,
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

// errStandby is worth another try, on another connection: see [postgres.Retryable].
var errStandby = fmt.Errorf("the server is a standby, or the table totals has lost its row: %w", driver.ErrBadConn)

// onPrimary runs a query that finds no row on a standby, which may lack visits
// that were confirmed. Behind a pooler a connection outlives its server's change
// from primary to standby; it is given up.
func onPrimary(ctx context.Context, pool *sql.DB, query func(*sql.Conn) error) error {
	return postgres.Repeat(ctx, func() error {
		conn, err := pool.Conn(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err = query(conn); errors.Is(err, sql.ErrNoRows) {
			conn.Raw(func(any) error { return driver.ErrBadConn })
			err = errStandby
		}
		return err
	})
}

// look reads the current state and how often visitor was counted; 0: never.
func (s *store) look(ctx context.Context, date time.Time, visitor []byte) (*tally, int64, error) {
	var r receipt
	err := onPrimary(ctx, s.reads, func(conn *sql.Conn) (err error) {
		r, _, err = scanReceipt(date, past{}, conn.QueryRowContext(ctx, `
			SELECT
				ARRAY[
					totals.visits, totals.visitors,
					COALESCE(today.visits, 0), COALESCE(today.visitors, 0), COALESCE(today.new_visitors, 0),
					COALESCE((SELECT visits FROM visitors WHERE id = $1::bytea), 0)
				]`+strings.ReplaceAll(pastSQL, "$3", "$2")+`
			FROM totals
			LEFT JOIN days AS today ON today.day = $2::date
			WHERE NOT pg_is_in_recovery()`,
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
	err = onPrimary(ctx, s.reads, func(conn *sql.Conn) error {
		return conn.QueryRowContext(ctx, `
			SELECT E'day,visits,visitors,new_visitors\n' || COALESCE(string_agg(
				concat_ws(',', to_char($1::date - ago, 'YYYY-MM-DD'), COALESCE(visits, 0), COALESCE(visitors, 0), COALESCE(new_visitors, 0)) || E'\n',
				'' ORDER BY ago DESC), '')
			FROM generate_series(0, $1::date - (SELECT min(day) FROM days)) AS ago
			LEFT JOIN days ON day = $1::date - ago
			HAVING NOT pg_is_in_recovery()`,
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

var (
	errNoTotals = postgres.Refuse("the table totals has lost its row: restore the database from a backup")
	errOtherKey = postgres.Refuse("the database has another visitor key than when this process started, so each visitor would count a second time: restore the database or its table settings, or, if this database is the right one, restart footfall")
)

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
// a [postgres.Refusal].
func (s *store) probe(ctx context.Context) error {
	var schema int
	var hasTotals bool
	var fingerprint string
	err := onPrimary(ctx, s.probes, func(conn *sql.Conn) error {
		return conn.QueryRowContext(ctx, `
			SELECT COALESCE(max(version), 0), `+stateSQL+`
			FROM schema_migrations
			HAVING current_setting('transaction_read_only') = 'off'`).Scan(&schema, &hasTotals, &fingerprint)
	})
	needs := len(ourMigrations())
	switch {
	case postgres.IsUndefined(err):
		return errNoCount
	case errors.Is(err, errStandby):
		return postgres.Refuse("the database is read-only")
	case err != nil:
		return fmt.Errorf("read the schema's version: %w", err)
	case schema < needs:
		return postgres.Refuse("%s", behind(schema, needs))
	}
	return s.refuses(hasTotals, fingerprint)
}

// errNoCount: a table or column of ours is missing.
var errNoCount = postgres.Refuse("this database holds no count yet, or an older program's: run footfall migrate, or look at the database's name in DATABASE_URL")
