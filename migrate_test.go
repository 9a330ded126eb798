package main

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// files makes a folder of migrations of name, text pairs.
func files(pairs ...string) fs.FS {
	fsys := fstest.MapFS{}
	for i := 0; i < len(pairs); i += 2 {
		fsys[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return fsys
}

// migrations loads them.
func migrations(t testing.TB, pairs ...string) []migration {
	t.Helper()
	ms, err := loadMigrations(files(pairs...))
	require.NoError(t, err)
	return ms
}

// queryInt reads one number.
func queryInt(t testing.TB, db *sql.DB, query string, args ...any) int64 {
	t.Helper()
	var n int64
	require.NoError(t, db.QueryRowContext(t.Context(), query, args...).Scan(&n))
	return n
}

// execute runs SQL that must succeed.
func execute(t testing.TB, db *sql.DB, query string, args ...any) {
	t.Helper()
	_, err := db.ExecContext(t.Context(), query, args...)
	require.NoError(t, err)
}

func tableExists(t testing.TB, db *sql.DB, name string) bool {
	t.Helper()
	return queryInt(t, db, `SELECT count(*) FROM pg_tables WHERE tablename = $1`, name) == 1
}

func TestLoadMigrations(t *testing.T) {
	t.Parallel()
	const endsIt = " ends its transaction: remove COMMIT or ROLLBACK, all files are applied in one"
	tests := map[string]struct {
		files   fs.FS
		want    int
		wantErr string
	}{
		"two":                {files("0001_a.sql", "SELECT 1", "0002_b.sql", "SELECT 2"), 2, ""},
		"none":               {files(), 0, ""},
		"not a number":       {files("first.sql", ""), 0, `migration "first.sql": name it NNNN_what_it_does.sql`},
		"not SQL":            {files("0001_a.sql", "", "README.md", ""), 0, `migration "README.md": name it NNNN_what_it_does.sql`},
		"number twice":       {files("0001_a.sql", "", "0001_b.sql", ""), 0, "migration 0001_b.sql: number 0001 is taken by 0001_a.sql, renumber one of them"},
		"gap":                {files("0001_a.sql", "", "0003_c.sql", ""), 0, "migration 0003_c.sql: 0002 is missing, number the files without gaps"},
		"first missing":      {files("0002_b.sql", ""), 0, "migration 0002_b.sql: 0001 is missing, number the files without gaps"},
		"COMMIT":             {files("0001_a.sql", "CREATE TABLE a ();\nCOMMIT;"), 0, "migration 0001_a.sql" + endsIt},
		"commit on one line": {files("0001_a.sql", "CREATE TABLE a (); commit"), 0, "migration 0001_a.sql" + endsIt},
		"ROLLBACK":           {files("0001_a.sql", "  ROLLBACK;"), 0, "migration 0001_a.sql" + endsIt},
		"a function's END":   {files("0001_a.sql", "DO $$ BEGIN\nPERFORM 1;\nEND $$;"), 1, ""},
		"ON COMMIT":          {files("0001_a.sql", "CREATE TEMP TABLE a () ON COMMIT DROP"), 1, ""},
		"commit_time":        {files("0001_a.sql", "SELECT\n  now() AS commit_time"), 1, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ms, err := loadMigrations(tt.files)
			if tt.wantErr != "" {
				require.EqualError(t, err, tt.wantErr)
				return
			}
			require.NoError(t, err)
			assert.Len(t, ms, tt.want)
		})
	}
}

func TestOurMigrations(t *testing.T) {
	t.Parallel()
	assert.NotPanics(t, func() { assert.NotEmpty(t, ourMigrations()) })
}

// Twelve processes that start together apply each file once, and none fails.
func TestMigrateTwelveAtOnce(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	ms := migrations(t,
		"0001_a.sql", "CREATE TABLE a (n bigint); INSERT INTO a VALUES (1)",
		"0002_b.sql", "ALTER TABLE a ADD COLUMN m bigint; INSERT INTO a VALUES (2, 2)")
	const starts = 12
	var all sync.WaitGroup
	results := make([]migrateResult, starts)
	errs := make([]error, starts)
	for i := range starts {
		s := openTestStore(t, url)
		all.Go(func() { results[i], errs[i] = migrate(t.Context(), s.reads, ms) })
	}
	all.Wait()
	var ran []string
	for i := range starts {
		assert.NoError(t, errs[i])
		for _, m := range results[i].ran {
			ran = append(ran, m.name)
		}
	}
	assert.Equal(t, []string{"0001_a.sql", "0002_b.sql"}, ran)
	db := openTestStore(t, url).reads
	assert.Equal(t, int64(2), queryInt(t, db, `SELECT count(*) FROM a`))
	assert.Equal(t, int64(2), queryInt(t, db, `SELECT count(*) FROM schema_migrations`))
}

func TestMigrateOnlyWhatIsPending(t *testing.T) {
	t.Parallel()
	db := openTestStore(t, newDatabase(t)).reads
	one := migrations(t, "0001_a.sql", "CREATE TABLE a ()")
	two := migrations(t, "0001_a.sql", "CREATE TABLE a ()", "0002_b.sql", "CREATE TABLE b ()")
	for _, tt := range []struct {
		ms      []migration
		ran     []string
		unknown int
	}{
		{one, []string{"0001_a.sql"}, 0},
		{one, nil, 0},
		{two, []string{"0002_b.sql"}, 0},
		{two, nil, 0},
		{one, nil, 1}, // an older program on a newer database
	} {
		result, err := migrate(t.Context(), db, tt.ms)
		require.NoError(t, err)
		var ran []string
		for _, m := range result.ran {
			ran = append(ran, m.name)
		}
		assert.Equal(t, tt.ran, ran)
		assert.Equal(t, tt.unknown, result.unknown)
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
	ms := migrations(t, "0001_a.sql", "CREATE TABLE a ()", "0002_b.sql", "CREATE TABLE b ()")
	tests := map[string]struct {
		before  string // what happens to the migrated database
		ms      []migration
		wantErr string
	}{
		"changed file": {"", migrations(t, "0001_a.sql", "CREATE TABLE a (n bigint)", "0002_b.sql", "CREATE TABLE b ()", "0003_c.sql", "CREATE TABLE c ()"),
			"0001_a.sql was changed after it was applied on "},
		"changed file in a newer database": {"", migrations(t, "0001_a.sql", "CREATE TABLE a (n bigint)"),
			"0001_a.sql was changed after it was applied on "},
		"lost row": {"DELETE FROM schema_migrations WHERE version = 1", ms,
			"migrate: schema_migrations lacks version 1: restore the row or the database"},
		"damaged table": {"ALTER TABLE schema_migrations RENAME COLUMN checksum TO sum", ms,
			`migrate: read schema_migrations: ERROR: column "checksum" does not exist`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			db := openTestStore(t, newDatabase(t)).reads
			_, err := migrate(t.Context(), db, ms)
			require.NoError(t, err)
			if tt.before != "" {
				execute(t, db, tt.before)
			}
			_, err = migrate(t.Context(), db, tt.ms)
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
	_, err := migrate(t.Context(), db, migrations(t,
		"0001_a.sql", "CREATE TABLE a ()",
		"0002_b.sql", "CREATE TABLE b ();\nSELECT 1/0"))
	require.ErrorContains(t, err, "migrate: 0002_b.sql: ERROR: division by zero")
	assert.False(t, tableExists(t, db, "a"))
	assert.False(t, tableExists(t, db, "b"))
	assert.False(t, tableExists(t, db, "schema_migrations"))
	assert.Zero(t, queryInt(t, db, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`))
	result, err := migrate(t.Context(), db, migrations(t, "0001_a.sql", "CREATE TABLE a ()"))
	require.NoError(t, err)
	assert.Len(t, result.ran, 1)
}

// What the pattern does not see ends the transaction all the same.
func TestMigrateCatchesEndOfTransaction(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"behind a comment": "CREATE TABLE a (); /* done */ COMMIT",
		"END":              "CREATE TABLE a ();\nEND;", // which also ends a function's body
		"rolled back":      "CREATE TABLE a (); /* done */ ROLLBACK; SELECT 1",
	} {
		t.Run(name, func(t *testing.T) {
			db := openTestStore(t, newDatabase(t)).reads
			_, err := migrate(t.Context(), db, migrations(t, "0001_a.sql", text, "0002_b.sql", "CREATE TABLE b ()"))
			require.ErrorContains(t, err, "0001_a.sql ends the transaction: remove COMMIT or ROLLBACK from it, and undo by hand what it did")
			assert.False(t, tableExists(t, db, "b"))
		})
	}
}

// holdMigrationLock keeps the advisory lock until the test ends.
func holdMigrationLock(t testing.TB, databaseURL string) {
	t.Helper()
	tx, err := openTestStore(t, databaseURL).reads.BeginTx(context.WithoutCancel(t.Context()), nil)
	require.NoError(t, err)
	t.Cleanup(func() { tx.Rollback() })
	_, err = tx.ExecContext(t.Context(), `SELECT pg_advisory_xact_lock($1)`, int64(migrateKey))
	require.NoError(t, err)
}

func TestMigrateLockTimeout(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	holdMigrationLock(t, url)
	_, err := migrateWithin(t.Context(), openTestStore(t, url).reads, ourMigrations(), "50ms")
	require.ErrorContains(t, err, "migrate: another process has been migrating this database for 50ms; wait for it, or look for it in pg_stat_activity: ")
}

// A start that is told to stop while it waits for another one's migration
// does not wait on.
func TestMigrateCanceled(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	holdMigrationLock(t, url)
	db := openTestStore(t, url).reads
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := migrate(ctx, db, ourMigrations())
		ended <- err
	}()
	eventually(t, "waits for the lock", func() bool {
		return queryInt(t, postgres.admin, `SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database WHERE locktype = 'advisory' AND NOT granted AND $1 LIKE '%/' || datname || '%'`, url) == 1
	})
	cancel()
	assert.ErrorIs(t, <-ended, context.Canceled)
}

// The program serves a database that a newer one has migrated, and says so once.
func TestPrepareNewerDatabase(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	execute(t, s.reads, `INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, 'future', 'x')`, len(ourMigrations())+1)
	log, lines := newLog(t)
	_, err := prepare(t.Context(), s.reads, ourMigrations(), nil, log)
	require.NoError(t, err)
	assert.Equal(t, 1, strings.Count(lines.String(), "the database is newer than this program"))
	assert.Contains(t, lines.String(), fmt.Sprintf(`"unknown_migrations":%d`, 1))
}
