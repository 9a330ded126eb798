package main

import (
	"database/sql"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// noon of a day in November 2026.
func november(day int) time.Time { return time.Date(2026, time.November, day, 12, 0, 0, 0, time.UTC) }

// someone is a visitor; each name another one.
func someone(name string) visitorID {
	var id visitorID
	copy(id[:], name)
	return id
}

// count records one visit and returns its number.
func count(t testing.TB, r *recorder, who string) int64 {
	t.Helper()
	v, err := r.record(someone(who))
	require.NoError(t, err)
	return v.number()
}

func TestLookAtNothing(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id := someone("ada")
	now, number, err := s.look(t.Context(), utcDay(november(24)), id[:])
	require.NoError(t, err)
	assert.Zero(t, number)
	assert.Zero(t, now.visits)
	assert.Zero(t, now.visitors)
	assert.WithinDuration(t, time.Now(), now.since, time.Minute)
	assert.Regexp(t, `^PostgreSQL \d+(\.\d+|beta\d+|devel)$`, now.database)
	require.Len(t, now.days, historyDays)
	assert.Equal(t, day{date: time.Date(2026, time.October, 26, 0, 0, 0, 0, time.UTC)}, now.days[0])
	assert.Equal(t, day{date: time.Date(2026, time.November, 24, 0, 0, 0, 0, time.UTC)}, now.today())
}

// What is counted comes back in look and in the receipts, day by day.
func TestCountOverDays(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	date := november(1)
	r := newTestRecorder(t, s)
	r.now = func() time.Time { return date }
	for _, visits := range []struct {
		on   time.Time
		who  string
		want int64
	}{
		{november(1).AddDate(0, 0, -30), "ada", 1}, // too long ago for the chart
		{november(1), "ada", 2},
		{november(1), "ada", 3},
		{november(1), "bob", 1},
		{november(24), "ada", 4},
		{november(24), "cyd", 1},
	} {
		date = visits.on
		assert.Equal(t, visits.want, count(t, r, visits.who), "%s on %s", visits.who, visits.on)
	}
	id := someone("ada")
	now, number, err := s.look(t.Context(), utcDay(november(24)), id[:])
	require.NoError(t, err)
	assert.Equal(t, int64(4), number)
	assert.Equal(t, int64(6), now.visits)
	assert.Equal(t, int64(3), now.visitors)
	assert.Equal(t, day{utcDay(november(24)), 2, 2, 1}, now.today())
	busy := slices.DeleteFunc(now.days, func(d day) bool { return d.visits == 0 })
	assert.Equal(t, []day{{utcDay(november(1)), 3, 2, 1}, {utcDay(november(24)), 2, 2, 1}}, busy)
	requireVerified(t, s)
}

// requireVerified recounts everything.
func requireVerified(t testing.TB, s *store) {
	t.Helper()
	checks, err := s.verify(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, checks)
	for _, c := range checks {
		require.Equal(t, c.sum, c.kept, c.what)
	}
}

// bigint everywhere: the numbers that an int4 could not hold.
func TestCountBeyond32Bits(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	date := november(24)
	r := newTestRecorder(t, s)
	r.now = func() time.Time { return date }
	count(t, r, "ada")
	const many = 5_000_000_000
	execute(t, s.reads, `UPDATE visitors SET visits = visits + $1`, int64(many))
	execute(t, s.reads, `UPDATE days SET visits = visits + $1, visitors = visitors + $1, new_visitors = new_visitors + $1`, int64(many))
	execute(t, s.reads, `UPDATE totals SET visits = visits + $1, visitors = visitors + $1`, int64(many))
	v, err := r.record(someone("ada"))
	require.NoError(t, err)
	assert.Equal(t, int64(many+2), v.number())
	assert.Equal(t, int64(many+2), v.receipt.visits)
	assert.Equal(t, int64(many+1), v.receipt.visitors)
	assert.Equal(t, int64(many+2), v.receipt.today().visits)
}

func TestVerifyFindsTampering(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		tamper string
		want   []string // what differs
	}{
		"a visit too many in the totals":   {`UPDATE totals SET visits = visits + 1`, []string{"all visits = sum over visitors + forgotten", "all visits = sum over days + imported"}},
		"a visitor too many in the totals": {`UPDATE totals SET visitors = visitors + 1`, []string{"all visitors = rows of visitors + forgotten", "all visitors = new ones over days + imported"}},
		"a visitor's visits":               {`UPDATE visitors SET visits = visits + 1 WHERE visits = 1`, []string{"all visits = sum over visitors + forgotten"}},
		"a visitor removed":                {`DELETE FROM visitors WHERE visits = 1`, []string{"all visits = sum over visitors + forgotten", "all visitors = rows of visitors + forgotten", "days whose new visitors differ from rows + forgotten", "visitors of the latest day = rows + forgotten"}},
		"a day's visits":                   {`UPDATE days SET visits = visits + 1 WHERE day = '2026-11-23'`, []string{"all visits = sum over days + imported"}},
		"a day's new visitors":             {`UPDATE days SET new_visitors = new_visitors + 1 WHERE day = '2026-11-23'`, []string{"all visitors = new ones over days + imported", "days whose new visitors differ from rows + forgotten"}},
		"new visitors on another day":      {`UPDATE days SET new_visitors = new_visitors + CASE day WHEN '2026-11-23' THEN 1 ELSE -1 END`, []string{"days whose new visitors differ from rows + forgotten"}},
		"the latest day's visitors":        {`UPDATE days SET visitors = 9 WHERE day = '2026-11-24'`, []string{"visitors of the latest day = rows + forgotten"}},
		"the visitors of the day before":   {`UPDATE days SET visitors = 9 WHERE day = '2026-11-23'`, []string{"visitors of the day before it = rows + forgotten"}},
		"imported visits":                  {`UPDATE totals SET imported_visits = 1`, []string{"all visits = sum over days + imported"}},
		"imported visitors":                {`UPDATE totals SET imported_visitors = 1`, []string{"all visitors = new ones over days + imported"}},
		"nothing":                          {`SELECT`, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			date := november(23)
			r := newTestRecorder(t, s)
			r.now = func() time.Time { return date }
			count(t, r, "ada")
			count(t, r, "ada")
			date = november(24)
			count(t, r, "ada")
			count(t, r, "bob")
			requireVerified(t, s)
			execute(t, s.reads, tt.tamper)
			checks, err := s.verify(t.Context())
			require.NoError(t, err)
			var different []string
			for _, c := range checks {
				if c.kept != c.sum {
					different = append(different, c.what)
				}
			}
			assert.Equal(t, tt.want, different)
		})
	}
}

func TestVerifyEmptyDatabases(t *testing.T) {
	t.Parallel()
	requireVerified(t, newStore(t))
	_, err := openTestStore(t, newDatabase(t)).verify(t.Context())
	assert.ErrorContains(t, err, "run footfall migrate")
}

func TestVisitorKey(t *testing.T) {
	t.Parallel()
	ours, other := []byte(strings.Repeat("k", 32)), []byte(strings.Repeat("x", 32))
	t.Run("made once and kept", func(t *testing.T) {
		t.Parallel()
		s := openTestStore(t, newDatabase(t))
		first, err := prepareWith(t, s, nil)
		require.NoError(t, err)
		assert.Len(t, first.key, minVisitorKey)
		again, err := prepareWith(t, s, nil)
		require.NoError(t, err)
		assert.Equal(t, first, again)
		_, err = prepareWith(t, s, ours)
		require.EqualError(t, err, "VISITOR_KEY has the fingerprint "+hasher{ours}.fingerprint()+", but this database was counted with "+first.fingerprint()+": set the earlier key again, this one would count every visitor a second time")
	})
	t.Run("given", func(t *testing.T) {
		t.Parallel()
		s := openTestStore(t, newDatabase(t))
		h, err := prepareWith(t, s, ours)
		require.NoError(t, err)
		assert.Equal(t, ours, h.key)
		assert.Zero(t, queryInt(t, s.reads, `SELECT count(*) FROM settings WHERE name = $1`, settingKey), "a given key is not kept")
		_, err = prepareWith(t, s, ours)
		require.NoError(t, err)
		_, err = prepareWith(t, s, other)
		require.ErrorContains(t, err, "VISITOR_KEY has the fingerprint "+hasher{other}.fingerprint())
		assert.NotContains(t, err.Error(), string(other))
		_, err = prepareWith(t, s, nil)
		require.EqualError(t, err, "VISITOR_KEY is not set, but this database was counted with one (fingerprint "+hasher{ours}.fingerprint()+"): set it again, any other would count every visitor a second time")
	})
	t.Run("damaged", func(t *testing.T) {
		t.Parallel()
		s := openTestStore(t, newDatabase(t))
		_, err := prepareWith(t, s, nil)
		require.NoError(t, err)
		execute(t, s.reads, `UPDATE settings SET value = 'zz' WHERE name = $1`, settingKey)
		_, err = prepareWith(t, s, nil)
		require.EqualError(t, err, "the visitor key kept in the database is damaged: restore table settings from a backup")
		execute(t, s.reads, `UPDATE settings SET value = 'aabb' WHERE name = $1`, settingKey)
		_, err = prepareWith(t, s, nil)
		require.ErrorContains(t, err, "this database was counted with")
	})
}

// No table holds an address, or anything that it could be found by with the
// key alone in the database: what is kept of a visitor is 16 bytes.
func TestNoAddressIsStored(t *testing.T) {
	t.Parallel()
	s := openTestStore(t, newDatabase(t))
	h, err := prepareWith(t, s, []byte(strings.Repeat("k", 32)))
	require.NoError(t, err)
	date := november(24)
	r := newTestRecorder(t, s)
	r.now = func() time.Time { return date }
	addr, ok := parseAddr("198.51.100.7")
	require.True(t, ok)
	_, err = r.record(h.visitor(addr))
	require.NoError(t, err)
	assert.Equal(t, int64(16), queryInt(t, s.reads, `SELECT length(id) FROM visitors`))
	for _, table := range []string{"visitors", "days", "totals", "writers", "settings", "schema_migrations"} {
		var content sql.NullString
		require.NoError(t, s.reads.QueryRowContext(t.Context(), `SELECT string_agg(t::text, E'\n') FROM `+table+` AS t`).Scan(&content))
		assert.NotContains(t, content.String, "198.51.100.7", table)
		assert.NotContains(t, content.String, "c6336407", table)
	}
}

// A connection that breaks in use, as the old ones do after a restart of the
// database, costs no answer where asking again is safe.
func TestReadsSurviveBrokenConnections(t *testing.T) {
	t.Parallel()
	c, through := newCutter(t, newDatabase(t))
	s := openTestStore(t, through)
	prepared(t, s)
	for _, how := range []cut{cutRequest, cutAfter, cutAnswer} {
		c.arm(how)
		_, _, err := s.look(t.Context(), utcDay(november(24)), nil)
		require.NoError(t, err)
		require.True(t, c.done())
		c.arm(how)
		schema, readOnly, err := s.probe(t.Context())
		require.NoError(t, err)
		require.Equal(t, len(ourMigrations()), schema)
		require.False(t, readOnly)
		require.True(t, c.done())
	}
}

// A connection ends even if it is always busy: it could be to a server that was
// demoted.
func TestConnectionsEnd(t *testing.T) {
	t.Parallel()
	s := openStoreWith(connConfig(t, newDatabase(t)), 50*time.Millisecond)
	defer s.close()
	for name, db := range map[string]*sql.DB{"reads": s.reads, "batches": s.batches, "probes": s.probes} {
		pid := func() int64 { return queryInt(t, db, `SELECT pg_backend_pid()`) }
		first := pid()
		eventually(t, name+" use another connection", func() bool { return pid() != first })
	}
}

// A database whose default is a stricter isolation level changes nothing:
// batches that meet on a row wait, and none has to be sent again.
func TestIsolationOfTheDatabase(t *testing.T) {
	databaseURL := newDatabase(t)
	s := openTestStore(t, databaseURL)
	prepared(t, s)
	alterDatabase(t, s, `default_transaction_isolation = "repeatable read"`)
	var wg sync.WaitGroup
	const instances, visits = 4, 100
	for range instances {
		r := newTestRecorder(t, openTestStore(t, databaseURL))
		wg.Go(func() {
			for range visits {
				count(t, r, "ada")
			}
			r.metrics.mu.Lock()
			defer r.metrics.mu.Unlock()
			assert.Zero(t, r.metrics.batches["retried"])
		})
	}
	wg.Wait()
	requireExactly(t, s, instances*visits)
}
