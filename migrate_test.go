package main

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"footfall/internal/postgres"
	"footfall/internal/visitor"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// files makes a directory of migrations of name, text pairs.
func files(pairs ...string) fs.FS {
	fsys := fstest.MapFS{}
	for i := 0; i < len(pairs); i += 2 {
		fsys["sql/"+pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return fsys
}

// migrations loads them.
func migrations(pairs ...string) []migration { return loadMigrations(files(pairs...)) }

// tryMigrations applies pending migrations and returns the files that ran.
func tryMigrations(t testing.TB, db *sql.DB, ms ...migration) (ran []string, err error) {
	t.Helper()
	err = underMigrationLock(t.Context(), db, migrateLimit, func(tx *sql.Tx) error {
		runs, err := migrate(t.Context(), tx, ms)
		ran = nil
		for _, run := range runs {
			ran = append(ran, run.name)
		}
		return err
	})
	return ran, err
}

// applyMigrations applies pending migrations, which must succeed.
func applyMigrations(t testing.TB, db *sql.DB, ms ...migration) {
	t.Helper()
	_, err := tryMigrations(t, db, ms...)
	require.NoError(t, err)
}

func tableExists(t testing.TB, db *sql.DB, name string) bool {
	t.Helper()
	return queryInt(t, db, `SELECT count(*) FROM pg_tables WHERE tablename = $1`, name) == 1
}

// What migrate relies on: NNNN_what_it_does.sql without gaps, and no statement
// that would end its transaction, and the lock with it.
func TestOurMigrations(t *testing.T) {
	t.Parallel()
	ms := ourMigrations()
	require.NotEmpty(t, ms)
	for i, m := range ms {
		assert.Regexp(t, fmt.Sprintf(`^%04d_[a-z0-9_]+\.sql$`, i+1), m.name)
		statements := regexp.MustCompile(`(?s)--[^\n]*|/\*.*?\*/|'[^']*'`).ReplaceAllString(m.sql, "")
		assert.NotRegexp(t, `(?i)\b(COMMIT|END|ROLLBACK|ABORT|BEGIN|START|PREPARE)\b`, statements, m.name)
	}
}

// A checkout with other line ends is the same program.
func TestLineEndsOfMigrations(t *testing.T) {
	t.Parallel()
	assert.Equal(t, migrations("0001_a.sql", "SELECT 1;\nSELECT 2;\n"), migrations("0001_a.sql", "SELECT 1;\r\nSELECT 2;\r\n"))
}

// Twelve processes that start together apply each file once, and none fails.
func TestMigrateTwelveAtOnce(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	ms := migrations(
		"0001_a.sql", "CREATE TABLE a (n bigint); INSERT INTO a VALUES (1)",
		"0002_b.sql", "ALTER TABLE a ADD COLUMN m bigint; INSERT INTO a VALUES (2, 2)")
	const starts = 12
	var all sync.WaitGroup
	results := make([][]string, starts)
	errs := make([]error, starts)
	for i := range starts {
		s := openTestStore(t, url)
		all.Go(func() { results[i], errs[i] = tryMigrations(t, s.reads, ms...) })
	}
	all.Wait()
	var ran []string
	for i := range starts {
		assert.NoError(t, errs[i])
		ran = append(ran, results[i]...)
	}
	assert.Equal(t, []string{"0001_a.sql", "0002_b.sql"}, ran)
	db := openTestStore(t, url).reads
	assert.Equal(t, int64(2), queryInt(t, db, `SELECT count(*) FROM a`))
	assert.Equal(t, int64(2), queryInt(t, db, `SELECT count(*) FROM schema_migrations`))
}

func TestMigrateOnlyWhatIsPending(t *testing.T) {
	t.Parallel()
	db := openTestStore(t, newDatabase(t)).reads
	one := migrations("0001_a.sql", "CREATE TABLE a ()")
	two := migrations("0001_a.sql", "CREATE TABLE a ()", "0002_b.sql", "CREATE TABLE b ()")
	for _, tt := range []struct {
		ms  []migration
		ran []string
	}{
		{one, []string{"0001_a.sql"}},
		{one, nil},
		{two, []string{"0002_b.sql"}},
		{two, nil},
		{one, nil}, // an older program on a newer database
	} {
		ran, err := tryMigrations(t, db, tt.ms...)
		require.NoError(t, err)
		assert.Equal(t, tt.ran, ran)
	}
	done, err := appliedMigrations(t.Context(), db)
	require.NoError(t, err)
	require.Len(t, done, 2)
	assert.Equal(t, "0002_b.sql", done[1].name)
	assert.Equal(t, two[1].checksum, done[1].checksum)
	assert.NotZero(t, done[1].appliedAt)
}

func TestMigrateRefuses(t *testing.T) {
	t.Parallel()
	ms := migrations("0001_a.sql", "CREATE TABLE a ()", "0002_b.sql", "CREATE TABLE b ()")
	tests := map[string]struct {
		before  string // what happens to the migrated database
		ms      []migration
		wantErr string
	}{
		"changed file": {"", migrations("0001_a.sql", "CREATE TABLE a (n bigint)", "0002_b.sql", "CREATE TABLE b ()", "0003_c.sql", "CREATE TABLE c ()"),
			"0001_a.sql was changed after it was applied on "},
		"changed file in a newer database": {"", migrations("0001_a.sql", "CREATE TABLE a (n bigint)"),
			"0001_a.sql was changed after it was applied on "},
		"lost row": {"DELETE FROM schema_migrations WHERE version = 1", ms,
			"schema_migrations lacks version 1: restore the row or the database"},
		"damaged table": {"ALTER TABLE schema_migrations RENAME COLUMN checksum TO sum", ms,
			`the table schema_migrations belongs to another program: give footfall a database of its own, or a schema, with ?search_path=NAME in DATABASE_URL`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := openTestStore(t, newDatabase(t)).reads
			applyMigrations(t, db, ms...)
			if tt.before != "" {
				execute(t, db, tt.before)
			}
			_, err := tryMigrations(t, db, tt.ms...)
			assert.ErrorContains(t, err, tt.wantErr)
			assert.False(t, tableExists(t, db, "c"))
		})
	}
}

// A failing file takes everything with it that ran before it, and the next
// start is free to try again.
func TestMigrateFailingFileLeavesNothing(t *testing.T) {
	t.Parallel()
	db := openTestStore(t, newDatabase(t)).reads
	_, err := tryMigrations(t, db, migrations(
		"0001_a.sql", "CREATE TABLE a ()",
		"0002_b.sql", "CREATE TABLE b ();\nSELECT 1/0")...)
	require.ErrorContains(t, err, "0002_b.sql: ERROR: division by zero")
	assert.False(t, tableExists(t, db, "a"))
	assert.False(t, tableExists(t, db, "b"))
	assert.False(t, tableExists(t, db, "schema_migrations"))
	assert.Zero(t, queryInt(t, db, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`))
	ran, err := tryMigrations(t, db, migrations("0001_a.sql", "CREATE TABLE a ()")...)
	require.NoError(t, err)
	assert.Len(t, ran, 1)
}

const takeMigrationLock = `SELECT pg_advisory_xact_lock(x'38472b5c42202c47'::bigint)` // migrateKey

func TestMigrateLockTimeout(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	holdLock(t, openTestStore(t, url), takeMigrationLock)
	err := underMigrationLock(t.Context(), openTestStore(t, url).reads, 50*time.Millisecond, nil)
	require.ErrorContains(t, err, "gave up after 50ms; look in pg_stat_activity for what holds the lock: wait for another process that is migrating this database: ")
}

// What another program's lock was in the way of is tried again, and nothing else.
func TestMigrationIsTriedAgain(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	for code, want := range map[string]int{"55P03": 2, "40P01": 2, "42601": 1} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			tries := 0
			err := underMigrationLock(t.Context(), s.reads, time.Minute, func(*sql.Tx) error {
				if tries++; tries == 1 {
					return &pgconn.PgError{Code: code}
				}
				return nil
			})
			assert.Equal(t, want == 2, err == nil)
			assert.Equal(t, want, tries)
		})
	}
}

// A start that is told to stop while it waits for another one's migration
// does not wait on.
func TestMigrateCanceled(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	holdLock(t, openTestStore(t, url), takeMigrationLock)
	db, other := openTestStore(t, url).reads, openTestStore(t, url).reads
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := prepareDatabase(ctx, db, nil, slog.New(slog.DiscardHandler))
		ended <- err
	}()
	eventually(t, "waits for the lock", func() bool {
		return queryInt(t, other, `SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database WHERE locktype = 'advisory' AND NOT granted AND $1 LIKE '%/' || datname || '%'`, url) == 1
	})
	cancel()
	assert.ErrorIs(t, <-ended, context.Canceled)
}

// Tables of another program in the same database.
func TestMigrateLeavesOthersTables(t *testing.T) {
	t.Parallel()
	const theirs = " belongs to another program: give footfall a database of its own, or a schema, with ?search_path=NAME in DATABASE_URL"
	for name, tt := range map[string]struct{ tables, wantErr string }{
		"Rails, dbmate":  {`CREATE TABLE schema_migrations (version varchar PRIMARY KEY)`, "migrate: the table schema_migrations" + theirs},
		"golang-migrate": {`CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL)`, "migrate: the table schema_migrations" + theirs},
		"Ecto":           {`CREATE TABLE schema_migrations (version bigint PRIMARY KEY, inserted_at timestamp)`, "migrate: the table schema_migrations" + theirs},
		"without any":    {`CREATE TABLE schema_migrations ()`, "migrate: the table schema_migrations" + theirs},
		"settings":       {`CREATE TABLE settings (id int)`, `migrate: 0001_count.sql: relation "settings" already exists: the table of that name` + theirs},
		"visitors":       {`CREATE TABLE visitors (id int)`, `migrate: 0001_count.sql: relation "visitors" already exists: the table of that name` + theirs},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := newDatabase(t)
			s := openTestStore(t, url)
			execute(t, s.reads, tt.tables)
			_, err := prepareWith(t, s, nil)
			require.EqualError(t, err, tt.wantErr)
			assert.False(t, postgres.Retryable(err))
			assert.Equal(t, int64(1), queryInt(t, s.reads, `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`), "nothing is added")
			// The way out that the sentence names.
			execute(t, s.reads, `CREATE SCHEMA footfall`)
			prepared(t, openTestStore(t, url+"&search_path=footfall"))
		})
	}
}

// A role with time limits migrates and imports all the same.
func TestMigrateUnderARolesTimeouts(t *testing.T) {
	t.Parallel()
	for _, limit := range []string{"statement_timeout", "idle_in_transaction_session_timeout"} {
		t.Run(limit, func(t *testing.T) {
			t.Parallel()
			url := newDatabase(t)
			alterDatabase(t, openTestStore(t, url), limit+` = 1000`)
			s := openTestStore(t, url)
			execute(t, s.reads, `CREATE TABLE slow (n int)`)
			err := underMigrationLock(t.Context(), s.reads, migrateLimit, func(tx *sql.Tx) error {
				if limit == "statement_timeout" {
					_, err := tx.ExecContext(t.Context(), `SELECT pg_sleep(1.5)`)
					return err
				}
				<-time.After(1500 * time.Millisecond) // as an import that computes
				_, err := tx.ExecContext(t.Context(), `INSERT INTO slow VALUES (1)`)
				return err
			})
			require.NoError(t, err)
			var kept string
			scan(t, s, &kept, `SHOW `+limit)
			assert.Equal(t, "1s", kept, "for that transaction only")
		})
	}
}

// A partial dump without settings: a new key would count everyone again.
func TestNoNewKeyForOldVisitors(t *testing.T) {
	t.Parallel()
	for name, key := range map[string][]byte{"kept in the database": nil, "configured": []byte(strings.Repeat("k", 32))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openTestStore(t, newDatabase(t))
			_, err := prepareWith(t, s, key)
			require.NoError(t, err)
			count(t, newTestRecorder(t, s), "ada")
			execute(t, s.reads, `DELETE FROM settings`)
			_, err = prepareWith(t, s, key)
			require.EqualError(t, err, "the table settings has lost the visitor key, but there are visitors: restore it from a backup, as another key would count each of them a second time")
			assert.Zero(t, queryInt(t, s.reads, `SELECT count(*) FROM settings`))
			execute(t, s.reads, `TRUNCATE visitors`)
			_, err = prepareWith(t, s, key)
			require.NoError(t, err, "nobody is there to be counted again")
		})
	}
}

// The program serves a database that a newer one has migrated, and says so once.
func TestPrepareNewerDatabase(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	execute(t, s.reads, `INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, 'future', 'x')`, len(ourMigrations())+1)
	log, lines := newLog(t)
	_, err := prepareDatabase(t.Context(), s.reads, nil, log)
	require.NoError(t, err)
	assert.Equal(t, 1, strings.Count(lines.String(), "the database is newer than this program"))
	assert.Contains(t, lines.String(), fmt.Sprintf(`"unknown_migrations":%d`, 1))
}

// A migration that waits for a table in use does not keep visits waiting, and
// gets through when the table is free.
func TestMigrationLetsVisitsThrough(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := openTestStore(t, url)
	prepared(t, s)
	r := newTestRecorder(t, s)
	require.EqualValues(t, 1, count(t, r, "ada"))
	release := holdLock(t, openTestStore(t, url), `SELECT count(*) FROM visitors`) // like pg_dump: ACCESS SHARE
	ms := append(ourMigrations(), migration{version: len(ourMigrations()) + 1, name: "9999_note.sql", sql: "ALTER TABLE visitors ADD COLUMN note text"})
	migrated := make(chan error, 1)
	migrating := openTestStore(t, url)
	go func() {
		_, err := tryMigrations(t, migrating.reads, ms...)
		migrated <- err
	}()
	for try := range 3 { // the queue forms and goes
		eventually(t, "the migration waits", func() bool { return blocked(t, s) > 0 })
		for range 10 {
			count(t, r, "ada")
		}
		eventually(t, fmt.Sprintf("try %d ends", try), func() bool { return blocked(t, s) == 0 })
	}
	release()
	require.NoError(t, <-migrated)
	count(t, r, "ada")
	requireExactly(t, s, 32)
}

// originalTables are what the Flask application that footfall replaces made:
// its model and Alembic's own table.
const originalTables = `
	CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);
	INSERT INTO alembic_version VALUES ('8f1d2c3b4a5e');
	CREATE TABLE visitor (
		id     serial PRIMARY KEY,
		ip     varchar(40) UNIQUE,
		visits integer
	);`

func TestTakeOver(t *testing.T) {
	t.Parallel()
	s := openTestStore(t, newDatabase(t))
	execute(t, s.reads, originalTables+`
		INSERT INTO visitor (ip, visits) VALUES
			('198.51.100.7', 3),
			('::ffff:198.51.100.7', 4),                    -- the same visitor
			('2001:db8:1:2::1', 10), ('2001:db8:1:2::2', 20), -- one /64
			('2001:db8:1:3::1', 5),
			('203.0.113.1', NULL),
			('203.0.113.2', -7),
			('203.0.113.3', 2147483647),
			('n/a', 1000), ('', 100), (NULL, 10), ('unknown', 1)`)
	before := dump(t, s, "visitor")
	log, lines := newLog(t)
	h, err := prepareDatabase(t.Context(), s.reads, nil, log)
	require.NoError(t, err)

	const visits, visitors = 3 + 4 + 10 + 20 + 5 + 2147483647, 6
	now, _, err := s.look(t.Context(), utcDay(november(24)), nil)
	require.NoError(t, err)
	assert.Equal(t, int64(visits), now.visits)
	assert.Equal(t, int64(visitors), now.visitors)
	for address, want := range map[string]int64{
		"198.51.100.7": 7, "2001:db8:1:2::ffff": 30, "2001:db8:1:3::1": 5, "203.0.113.1": 0, "203.0.113.2": 0, "203.0.113.3": 2147483647,
	} {
		client, ok := visitor.Parse(address)
		require.True(t, ok)
		id := h.ID(client)
		_, number, err := s.look(t.Context(), utcDay(november(24)), id[:])
		require.NoError(t, err)
		assert.Equal(t, want, number, address)
	}
	requireVerified(t, s)
	assert.Equal(t, before, dump(t, s, "visitor"), "the old table stays as it is")
	assert.Contains(t, lines.String(), `"msg":"imported visitors of the original","rows":12,"visitors":6,"visits":2147483689}`)
	assert.Contains(t, lines.String(), `"msg":"rows without an address were not imported","rows":4,"visits":1111}`)
	for _, address := range []string{"198.51.100", "2001:db8", "203.0.113"} {
		assert.NotContains(t, lines.String(), address)
	}

	// An imported visitor counts on from where he was, and is no new one.
	date := november(24)
	r := newTestRecorder(t, s)
	r.now = func() time.Time { return date }
	client, _ := visitor.Parse("198.51.100.7")
	v, err := r.record(h.ID(client))
	require.NoError(t, err)
	assert.Equal(t, int64(8), v.standing().visits)
	assert.Equal(t, int64(visitors), v.receipt.visitors)
	assert.Equal(t, day{utcDay(date), 1, 1, 0}, v.receipt.today())
	requireVerified(t, s)

	// Never twice, not even with more rows in the old table.
	execute(t, s.reads, `INSERT INTO visitor (ip, visits) VALUES ('198.51.100.9', 1)`)
	_, err = prepareDatabase(t.Context(), s.reads, nil, log)
	require.NoError(t, err)
	assert.Equal(t, 1, strings.Count(lines.String(), "imported visitors of the original"))
	assert.Equal(t, int64(visits+1), queryInt(t, s.reads, `SELECT visits FROM totals`))
}

// The original's column as another program may have changed it.
func TestTakeOverOtherTypes(t *testing.T) {
	t.Parallel()
	for _, tt := range []string{"text", "inet", "cidr", "char(40)"} {
		t.Run(tt, func(t *testing.T) {
			t.Parallel()
			s := openTestStore(t, newDatabase(t))
			execute(t, s.reads, originalTables+`
				ALTER TABLE visitor ALTER COLUMN ip TYPE `+tt+` USING ip::`+tt+`;
				INSERT INTO visitor (ip, visits) VALUES ('198.51.100.7', 3), ('2001:db8:1:2::1', 4), (NULL, 5)`)
			h := prepared(t, s)
			for address, want := range map[string]int64{"198.51.100.7": 3, "2001:db8:1:2::9": 4} {
				client, ok := visitor.Parse(address)
				require.True(t, ok)
				assert.Equal(t, want, visitsOf(t, s, h.ID(client)), address)
			}
			requireExactly(t, s, 7)
		})
	}
}

// dump returns all of a table as text.
func dump(t testing.TB, s *store, table string) string {
	t.Helper()
	var text string
	require.NoError(t, s.reads.QueryRowContext(t.Context(), `SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM `+table+` AS t`).Scan(&text))
	return text
}

// A table visitor that is not the original's is none of our business.
func TestTakeOverOnlyTheOriginal(t *testing.T) {
	t.Parallel()
	for name, tables := range map[string]string{
		"nothing":         `SELECT`,
		"only visitor":    `CREATE TABLE visitor (name text)`,
		"only alembic":    `CREATE TABLE alembic_version (version_num text)`,
		"empty original":  originalTables,
		"others' columns": `CREATE TABLE alembic_version (version_num text); CREATE TABLE visitor (name text)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openTestStore(t, newDatabase(t))
			execute(t, s.reads, tables)
			_, err := prepareWith(t, s, nil)
			require.NoError(t, err)
			assert.Zero(t, queryInt(t, s.reads, `SELECT visits + visitors FROM totals`))
		})
	}
}

// Of an import that is cut off nothing is left, and the next one does it all.
func TestTakeOverCutOff(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := openTestStore(t, url)
	execute(t, s.reads, originalTables)
	execute(t, s.reads, `INSERT INTO visitor (ip, visits) SELECT '10.' || n / 65536 || '.' || n / 256 % 256 || '.' || n % 256, 2 FROM generate_series(1, 30000) AS n`)
	applyMigrations(t, s.reads, ourMigrations()...)
	// The import's last step waits for this lock; there we end its session.
	tx, err := s.reads.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	defer tx.Rollback()
	_, err = tx.ExecContext(t.Context(), `LOCK TABLE totals`)
	require.NoError(t, err)
	failed := make(chan error, 1)
	importer := openTestStore(t, url)
	go func() {
		_, err := prepareWith(t, importer, nil)
		failed <- err
	}()
	eventually(t, "the import ended half-way", func() bool {
		return queryInt(t, s.reads, `
			SELECT count(*) FILTER (WHERE pg_terminate_backend(pid))
			FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
	})
	require.ErrorContains(t, <-failed, "import visitors: ")
	require.NoError(t, tx.Rollback())
	assert.Zero(t, queryInt(t, s.reads, `SELECT count(*) FROM visitors`))
	assert.Zero(t, queryInt(t, s.reads, `SELECT count(*) FROM settings`))
	_, err = prepareWith(t, s, nil)
	require.NoError(t, err)
	assert.Equal(t, int64(30000), queryInt(t, s.reads, `SELECT visitors FROM totals`))
	assert.Equal(t, int64(60000), queryInt(t, s.reads, `SELECT visits FROM totals`))
	requireVerified(t, s)
}

// Two that start together import once.
func TestTakeOverAtOnce(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := openTestStore(t, url)
	execute(t, s.reads, originalTables+`INSERT INTO visitor (ip, visits) VALUES ('198.51.100.7', 3)`)
	errs := make(chan error, 4)
	for range cap(errs) {
		starting := openTestStore(t, url)
		go func() {
			_, err := prepareWith(t, starting, nil)
			errs <- err
		}()
	}
	for range cap(errs) {
		assert.NoError(t, <-errs)
	}
	assert.Equal(t, int64(3), queryInt(t, s.reads, `SELECT visits FROM totals`))
}

func TestTakeOverManyRows(t *testing.T) {
	t.Parallel()
	s := openTestStore(t, newDatabase(t))
	execute(t, s.reads, originalTables)
	// Every address in two spellings.
	execute(t, s.reads, `
		INSERT INTO visitor (ip, visits)
		SELECT prefix || '10.' || n / 65536 || '.' || n / 256 % 256 || '.' || n % 256, 1
		FROM unnest(ARRAY['', '::ffff:']) AS prefix, generate_series(1, 60000) AS n`)
	log, lines := newLog(t)
	_, err := prepareDatabase(t.Context(), s.reads, nil, log)
	require.NoError(t, err)
	assert.Contains(t, lines.String(), `"rows":120000,"visitors":60000,"visits":120000`)
	requireVerified(t, s)
}
