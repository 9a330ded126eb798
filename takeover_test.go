package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

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
		addr, ok := parseAddr(address)
		require.True(t, ok)
		id := h.visitor(addr)
		_, number, err := s.look(t.Context(), utcDay(november(24)), id[:])
		require.NoError(t, err)
		assert.Equal(t, want, number, address)
	}
	requireVerified(t, s)
	assert.Equal(t, before, dump(t, s, "visitor"), "the old table stays as it is")
	assert.Contains(t, lines.String(), `"msg":"imported visitors of the original","rows":12,"visitors":6,"visits":2147483689,`)
	assert.Contains(t, lines.String(), `"msg":"rows without an address were not imported","rows":4,"visits":1111}`)
	for _, address := range []string{"198.51.100", "2001:db8", "203.0.113"} {
		assert.NotContains(t, lines.String(), address)
	}

	// An imported visitor counts on from where he was, and is no new one.
	date := november(24)
	r := newTestRecorder(t, s)
	r.now = func() time.Time { return date }
	addr, _ := parseAddr("198.51.100.7")
	v, err := r.record(h.visitor(addr))
	require.NoError(t, err)
	assert.Equal(t, int64(8), v.number())
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
