package main

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"footfall/internal/devdb"
	"footfall/internal/visitor"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

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
	v, err := r.record(someone("ada"))
	require.NoError(t, err)
	assert.Equal(t, day{utcDay(november(24)), 3, 2, 1}, v.receipt.today(), "the receipt says the same as a look")
	id := someone("ada")
	now, number, err := s.look(t.Context(), utcDay(november(24)), id[:])
	require.NoError(t, err)
	assert.Equal(t, int64(5), number)
	assert.Equal(t, int64(7), now.visits)
	assert.Equal(t, int64(3), now.visitors)
	assert.Equal(t, day{utcDay(november(24)), 3, 2, 1}, now.today())
	busy := slices.DeleteFunc(now.days, func(d day) bool { return d.visits == 0 })
	assert.Equal(t, []day{{utcDay(november(1)), 3, 2, 1}, {utcDay(november(24)), 3, 2, 1}}, busy)
	requireVerified(t, s)
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
	assert.Equal(t, int64(many+2), v.standing().visits)
	assert.Equal(t, int64(many+2), v.receipt.visits)
	assert.Equal(t, int64(many+1), v.receipt.visitors)
	assert.Equal(t, int64(many+2), v.receipt.today().visits)
}

func TestVisitorKey(t *testing.T) {
	t.Parallel()
	ours, other := []byte(strings.Repeat("k", 32)), []byte(strings.Repeat("x", 32))
	t.Run("made once and kept", func(t *testing.T) {
		t.Parallel()
		s := openTestStore(t, newDatabase(t))
		first, err := prepareWith(t, s, nil)
		require.NoError(t, err)
		assert.Equal(t, int64(2*visitor.MinKey), queryInt(t, s.reads, `SELECT length(value) FROM settings WHERE name = $1`, settingKey))
		again, err := prepareWith(t, s, nil)
		require.NoError(t, err)
		assert.Equal(t, first, again)
		_, err = prepareWith(t, s, ours)
		require.EqualError(t, err, "VISITOR_KEY has the fingerprint "+visitor.NewHasher(ours).Fingerprint()+", but this database was counted with "+first.Fingerprint()+": set the earlier key again, this one would count every visitor a second time")
	})
	t.Run("given", func(t *testing.T) {
		t.Parallel()
		s := openTestStore(t, newDatabase(t))
		h, err := prepareWith(t, s, ours)
		require.NoError(t, err)
		assert.Equal(t, visitor.NewHasher(ours), h)
		assert.Zero(t, queryInt(t, s.reads, `SELECT count(*) FROM settings WHERE name = $1`, settingKey), "a given key is not kept")
		_, err = prepareWith(t, s, ours)
		require.NoError(t, err)
		_, err = prepareWith(t, s, other)
		require.ErrorContains(t, err, "VISITOR_KEY has the fingerprint "+visitor.NewHasher(other).Fingerprint())
		assert.NotContains(t, err.Error(), string(other))
		_, err = prepareWith(t, s, nil)
		require.EqualError(t, err, "VISITOR_KEY is not set, but this database was counted with one (fingerprint "+visitor.NewHasher(ours).Fingerprint()+"): set it again, any other would count every visitor a second time")
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
	client, ok := visitor.Parse("198.51.100.7")
	require.True(t, ok)
	_, err = r.record(h.ID(client))
	require.NoError(t, err)
	assert.Equal(t, int64(16), queryInt(t, s.reads, `SELECT length(id) FROM visitors`))
	for _, table := range []string{"visitors", "days", "totals", "writers", "settings", "schema_migrations", "evidence"} {
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
		require.NoError(t, s.probe(t.Context()))
		require.True(t, c.done())
	}
}

// A database far away needs 1.5 s for the first byte of each connection, twice
// that with sslmode=prefer: longer than a visit waits and than /readyz does. The
// visits after the first connection are counted.
func TestDatabaseFarAway(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ hosts, parameters string }{
		"one host":            {"HOST", "sslmode=disable"},
		"one host, prefer":    {"HOST", "sslmode=prefer"},
		"two hosts, prefer":   {"HOST,HOST2", "sslmode=prefer"},
		"the second is there": {"127.0.0.1:1,HOST", "sslmode=disable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			far := newDatabase(t)
			hosts := tt.hosts
			for _, name := range []string{"HOST2", "HOST"} {
				c, through := newCutter(t, far)
				c.slow(1500 * time.Millisecond)
				u, err := url.Parse(through)
				require.NoError(t, err)
				hosts = strings.ReplaceAll(hosts, name, u.Host)
			}
			cfg := connConfig(t, far)
			databaseURL := url.URL{Scheme: "postgres", User: url.UserPassword(cfg.User, cfg.Password), Host: hosts, Path: "/" + cfg.Database, RawQuery: tt.parameters}
			r := start(t, "DATABASE_URL", databaseURL.String())
			counted := func() bool {
				answer, _ := r.get(t, "/")
				return answer.StatusCode == http.StatusOK
			}
			eventually(t, "a visit is counted", counted)
			for range 5 {
				require.True(t, counted())
			}
			eventually(t, "the service is ready", func() bool {
				answer, _ := r.get(t, "/readyz")
				return answer.StatusCode == http.StatusOK
			})
		})
	}
}

// Where connecting takes long, the next connection is made before the last one ends.
func TestConnectionsFollowOneAnother(t *testing.T) {
	t.Parallel()
	c, through := newCutter(t, newDatabase(t))
	const delay = time.Second
	c.slow(delay)
	s := openStoreWith(connConfig(t, through), 4*delay)
	defer s.close()
	pids := map[int64]bool{}
	for len(pids) < 3 {
		asked := time.Now()
		pids[queryInt(t, s.batches, `SELECT pg_backend_pid()`)] = true
		if len(pids) > 1 {
			require.Less(t, time.Since(asked), delay)
		}
	}
}

// Of a name's addresses the first is dead: nothing takes its packets. So the page
// waits half a second for each new connection, no longer.
func TestNameWithADeadAddress(t *testing.T) {
	t.Parallel()
	_, through := newCutter(t, newDatabase(t))
	cfg := connConfig(t, strings.Replace(through, "127.0.0.1", "db.example", 1))
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.2", "127.0.0.1"}, nil }
	// A listener whose queue is full drops what comes, as a dead host does.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer syscall.Close(fd)
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 2}, Port: int(cfg.Port)}))
	require.NoError(t, syscall.Listen(fd, 0))
	dead := net.JoinHostPort("127.0.0.2", fmt.Sprint(cfg.Port))
	for {
		conn, err := net.DialTimeout("tcp", dead, 100*time.Millisecond)
		if err != nil {
			break
		}
		defer conn.Close()
	}
	s := openStore(cfg)
	t.Cleanup(func() { assert.NoError(t, s.close()) })
	prepared(t, s)
	r := newTestRecorder(t, s)
	for range 3 {
		count(t, r, "ada")
		s.batches.SetMaxIdleConns(0) // connect again
		s.batches.SetMaxIdleConns(1)
	}
	require.NoError(t, s.probe(t.Context()))
}

// PostgreSQL's administrator sees whose sessions these are.
func TestApplicationName(t *testing.T) {
	t.Parallel()
	for parameter, want := range map[string]string{"": "footfall/" + thisBuild().Version, "application_name=mine": "mine", "fallback_application_name=other": "footfall/" + thisBuild().Version} {
		databaseURL, err := url.Parse(newDatabase(t))
		require.NoError(t, err)
		query := databaseURL.Query()
		name, value, _ := strings.Cut(parameter, "=")
		query.Set(name, value)
		if name == "" {
			query.Del(name)
		}
		databaseURL.RawQuery = query.Encode()
		s := openTestStore(t, databaseURL.String())
		var got string
		scan(t, s, &got, `SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()`)
		assert.Equal(t, want, got)
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
	t.Parallel()
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

// Whatever form of dates the database or the URL asks for, in any way that the
// driver sends statements, visits count and all that holds a time is read.
func TestDateStyles(t *testing.T) {
	t.Parallel()
	for _, style := range []string{"ISO, YMD", "German", "SQL, DMY", "Postgres, MDY"} {
		for _, mode := range []string{"default_query_exec_mode=cache_statement", "default_query_exec_mode=exec", "default_query_exec_mode=simple_protocol", "default_query_exec_mode=cache_describe", "DateStyle=German"} {
			t.Run(style+" "+mode, func(t *testing.T) {
				t.Parallel()
				plain := newDatabase(t)
				alterDatabase(t, openTestStore(t, plain), `datestyle = "`+style+`"`)
				u, err := url.Parse(plain)
				require.NoError(t, err)
				query := u.Query()
				key, value, _ := strings.Cut(mode, "=")
				query.Set(key, value)
				u.RawQuery = query.Encode()
				s := newTestServer(t, u.String())
				prepared(t, s.store) // also where nothing is pending
				for _, path := range []string{"/", "/readyz", "/api/stats", "/api/stats.csv"} {
					w := s.ask("GET", path)
					require.Equal(t, http.StatusOK, w.Code, "%s: %s", path, w.Body)
				}
				var out bytes.Buffer
				require.NoError(t, migrationStatus(t.Context(), s.cfg, &out))
				assert.NotContains(t, s.lines.String(), `"level":"WARN"`)
				requireExactly(t, s.store, 1)
			})
		}
	}
}

// newSyncStandby makes a standby without which c confirms nothing.
func newSyncStandby(t testing.TB, c *testCluster) *testCluster {
	t.Helper()
	standby := newStandby(t, c)
	primary := openTestStore(t, c.URL("footfall"))
	execute(t, primary.reads, `ALTER SYSTEM SET synchronous_standby_names = '*'`)
	execute(t, primary.reads, `SELECT pg_reload_conf()`)
	awaitReplication(t, primary)
	return standby
}

// newStandby makes an asynchronous standby of c.
func newStandby(t testing.TB, c *testCluster) *testCluster {
	t.Helper()
	dir, err := clusterDir()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	data := filepath.Join(dir, "data")
	require.NoError(t, os.Mkdir(data, 0o700))
	require.NoError(t, c.Own(data))
	output, err := c.Command(t.Context(), "pg_basebackup", "--pgdata", data, "--write-recovery-conf", "--checkpoint=fast",
		"--host", c.Sockets, "--username", "footfall").CombinedOutput()
	require.NoError(t, err, "%s", output)
	standby, err := devdb.Start(t.Context(), dir, c.options...)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, standby.Stop()) })
	return &testCluster{standby, c.options}
}

// awaitReplication returns when commits wait for a standby that answers.
func awaitReplication(t testing.TB, primary *store) {
	t.Helper()
	eventually(t, "the standby is synchronous", func() bool {
		var n int
		scan(t, primary, &n, `SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'`)
		return n == 1
	})
}

// crowd has sixteen visitors come again and again until stop is called, and notes
// what they hear.
func crowd(r *recorder, l *ledger) (stop func()) {
	ended := make(chan struct{})
	var wg sync.WaitGroup
	for visitor := range 16 {
		wg.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
				}
				sent := time.Now()
				v, err := r.record(numbered(visitor))
				var number int64
				if err == nil {
					number = v.standing().visits
				}
				l.note(visitor, number, sent, err)
			}
		})
	}
	return func() { close(ended); wg.Wait() }
}

// The primary dies while visits are counted, and the standby takes its place.
func TestFailover(t *testing.T) {
	t.Parallel()
	primary := newCluster(t)
	p := openTestStore(t, primary.URL("footfall"))
	prepared(t, p)
	standby := newSyncStandby(t, primary)

	s := openTestStore(t, "postgres://footfall@/footfall?target_session_attrs=read-write&host="+
		url.QueryEscape(primary.Sockets+","+standby.Sockets))
	r := newTestRecorder(t, s)
	l := newLedger()
	stop := crowd(r, l)
	eventually(t, "counting", func() bool { return l.countedSince(time.Now().Add(-time.Second)) })
	primary.end(t, syscall.SIGKILL)
	start := time.Now()
	standby.promote(t)
	l.watch()
	eventually(t, "counting again", func() bool { return l.back() > 0 })
	t.Logf("counting again %s after the promotion, %s after the primary's death", l.back(), time.Since(start))
	assert.Less(t, l.back(), 5*time.Second)
	stop()

	promoted := openTestStore(t, standby.URL("footfall"))
	awaitQuiet(t, promoted)
	var rows int64
	lost, doubled := l.compare(func(visitor int) int64 {
		row := visitsOf(t, promoted, numbered(visitor))
		rows += row
		return row
	})
	assert.Zero(t, lost)
	assert.Zero(t, doubled)
	requireExactly(t, promoted, rows)
}

// A backend that is terminated while it waits for the standby has committed on
// the primary alone; one that is canceled says so by a warning and answers as if
// all were well. Their batch is not confirmed before the standby has it.
func TestCommitThatTheStandbyHasNotSeen(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"pg_terminate_backend", "pg_cancel_backend"} {
		t.Run(end, func(t *testing.T) {
			primary := newCluster(t)
			s := openTestStore(t, primary.URL("footfall"))
			prepared(t, s)
			standby := newSyncStandby(t, primary)
			r := newTestRecorder(t, s)
			numbersOf(t, hand(t, r, numbered(1)))

			standby.end(t, syscall.SIGQUIT)
			visits := hand(t, r, numbered(1), numbered(1))
			waiting := func() (pid int) {
				scan(t, s, &pid, `SELECT COALESCE(max(pid), 0) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`)
				return pid
			}
			var first int
			eventually(t, "the batch waits for the standby", func() bool { first = waiting(); return first != 0 })
			var ok bool
			scan(t, s, &ok, `SELECT `+end+`($1)`, first)
			eventually(t, "its next try waits as well", func() bool {
				pid := waiting()
				return pid != 0 && pid != first || isDone(visits[0])
			})
			require.False(t, isDone(visits[0]), "confirmed without the standby")
			standby.begin(t)
			assert.Equal(t, []int64{2, 3}, numbersOf(t, visits))
			requireExactly(t, s, 3)
		})
	}
}

func TestCancelledWaits(t *testing.T) {
	t.Parallel()
	cancelWaits(t, 40)
}

// cancelWaits cancels waits for the standby, with it and without it, and promotes
// it. No confirmed visit is missing. A visit that was answered 503 could be seen
// on the primary, and is gone.
func cancelWaits(t *testing.T, waits int64) {
	primary := newCluster(t)
	p := openTestStore(t, primary.URL("footfall"))
	prepared(t, p)
	standby := newSyncStandby(t, primary)
	log, lines := newLog(t)
	lines.drop()
	r := newRecorder(p, log, newMetrics())
	t.Cleanup(func() { // in vain: its server is gone, or waits for ever
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), visitTimeout)
		defer cancel()
		r.close(ctx)
	})
	l := newLedger()
	stop := crowd(r, l)

	cancelled := int64(0)
	cancelUntil := func(limit int64) {
		eventually(t, "more waits to cancel", func() bool {
			cancelled += queryInt(t, p.reads, `SELECT count(*) FILTER (WHERE pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`)
			return cancelled >= limit
		})
	}
	var receiver int // the standby's process that confirms
	scan(t, openTestStore(t, standby.URL("footfall")), &receiver, `SELECT pid FROM pg_stat_wal_receiver`)
	for limit := waits / 10; limit < waits; limit += waits / 10 {
		require.NoError(t, syscall.Kill(receiver, syscall.SIGSTOP))
		cancelUntil(limit)
		require.NoError(t, syscall.Kill(receiver, syscall.SIGCONT))
		again := time.Now()
		eventually(t, "counting again", func() bool { return l.countedSince(again) })
	}
	stop()
	numbersOf(t, hand(t, r, numbered(99)))
	standby.end(t, syscall.SIGINT)
	given := make(chan error, 1)
	go func() {
		_, err := r.record(numbered(99))
		given <- err
	}()
	eventually(t, "the visit is given up", func() bool { cancelUntil(0); return len(given) > 0 })
	err := <-given
	require.Error(t, err)
	require.NotErrorIs(t, err, errNotCounted)
	assert.EqualValues(t, 2, visitsOf(t, p, numbered(99)))
	stop = crowd(r, l)
	cancelUntil(waits)
	stop()

	primary.end(t, syscall.SIGKILL)
	standby.begin(t)
	standby.promote(t)
	promoted := openTestStore(t, standby.URL("footfall"))
	rows := visitsOf(t, promoted, numbered(99))
	assert.EqualValues(t, 1, rows)
	lost, doubled := l.compare(func(visitor int) int64 {
		row := visitsOf(t, promoted, numbered(visitor))
		rows += row
		return row
	})
	assert.Zero(t, lost)
	assert.Zero(t, doubled)
	requireExactly(t, promoted, rows)
}

// A limit, not a promise: a standby that is asynchronous may lack confirmed
// visits when it is promoted.
func TestAsynchronousFailoverLoses(t *testing.T) {
	t.Parallel()
	primary := newCluster(t)
	s := openTestStore(t, primary.URL("footfall"))
	prepared(t, s)
	standby := newStandby(t, primary)
	log, _ := newLog(t)
	r := newRecorder(s, log, newMetrics())
	t.Cleanup(func() { r.close(context.WithoutCancel(t.Context())) }) // in vain: its server is gone
	numbersOf(t, hand(t, r, numbered(1)))
	behind := openTestStore(t, standby.URL("footfall"))
	eventually(t, "the standby has the first visit", func() bool { return visitsOf(t, behind, numbered(1)) == 1 })
	standby.end(t, syscall.SIGINT)
	assert.Equal(t, []int64{2, 3}, numbersOf(t, hand(t, r, numbered(1), numbered(1))), "confirmed by the primary alone")
	primary.end(t, syscall.SIGKILL)
	standby.begin(t)
	standby.promote(t)
	promoted := openTestStore(t, standby.URL("footfall"))
	assert.EqualValues(t, 1, visitsOf(t, promoted, numbered(1)))
	requireExactly(t, promoted, 1)
}

// startPgBouncer puts a PgBouncer with transaction pooling in front of the
// cluster and returns what makes the DATABASE_URL of a database through it.
func startPgBouncer(t testing.TB, c *testCluster) func(database string) string {
	t.Helper()
	bin, err := exec.LookPath("pgbouncer")
	if err != nil {
		bin = "/usr/sbin/pgbouncer" // Debian's, and not in every account's PATH
	}
	// Two server connections for everybody: statements of one client land on
	// different ones, as they do in a busy pool.
	ini := filepath.Join(c.Sockets, "pgbouncer.ini")
	require.NoError(t, os.WriteFile(ini, fmt.Appendf(nil, `
[databases]
* = host=%[1]s user=footfall
[pgbouncer]
listen_port = 6432
unix_socket_dir = %[1]s
auth_type = any
pool_mode = transaction
default_pool_size = 2
server_round_robin = 1
`, c.Sockets), 0o644))
	cmd := exec.Command(bin, ini)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.As} // it refuses root
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		assert.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		cmd.Wait() // a pooler that a signal ended
	})
	through := func(database string) string {
		return "postgres://footfall@/" + database + "?port=6432&host=" + url.QueryEscape(c.Sockets)
	}
	s := openTestStore(t, through("postgres")+"&default_query_exec_mode=simple_protocol")
	eventually(t, "PgBouncer answers", func() bool { return s.reads.PingContext(t.Context()) == nil })
	return through
}

// Behind a pooler a connection outlives its server's change from primary to
// standby, which may lack visits that were confirmed: nothing is read there, and
// the new primary is found at once.
func TestNothingIsReadFromAStandby(t *testing.T) {
	t.Parallel()
	old := newCluster(t)
	standby := newStandby(t, old)
	startPgBouncer(t, old)
	s := openTestStore(t, fmt.Sprintf("postgres://footfall@/footfall?host=%s&port=6432,5432&target_session_attrs=read-write&default_query_exec_mode=exec",
		url.QueryEscape(old.Sockets+","+standby.Sockets)))
	prepared(t, s)
	ways := map[string]func() error{
		"totals": func() error { _, _, err := s.look(t.Context(), utcDay(time.Now()), nil); return err },
		"days":   func() error { _, err := s.daysCSV(t.Context(), utcDay(time.Now())); return err },
		"probe":  func() error { return s.probe(t.Context()) },
	}
	for name, ask := range ways {
		require.NoError(t, ask(), name)
	}
	old.end(t, syscall.SIGINT)
	require.NoError(t, os.WriteFile(filepath.Join(old.Data(), "standby.signal"), nil, 0o644))
	old.begin(t)
	for name, ask := range ways {
		require.Error(t, ask(), name)
	}
	standby.promote(t)
	for name, ask := range ways {
		require.NoError(t, ask(), name)
	}
}

// Behind a pooler a statement cannot be prepared on one connection and run on
// another. Both ways of pgx around that work.
func TestBehindPgBouncer(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	through := startPgBouncer(t, c)
	for _, mode := range []string{"exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			execute(t, openTestStore(t, c.URL("footfall")).reads, `CREATE DATABASE `+mode)
			databaseURL := through(mode) + "&default_query_exec_mode=" + mode
			getenv := environment("DATABASE_URL", databaseURL, "LISTEN_ADDR", "127.0.0.1:0")
			var out strings.Builder
			require.NoError(t, run(t.Context(), []string{"migrate"}, getenv, &out), out.String())

			footfall := startFunc(t, func(ctx context.Context, out io.Writer) error { return run(ctx, []string{"serve"}, getenv, out) })
			footfall.awaitReady(t)
			l := newLedger()
			var wg sync.WaitGroup
			const clients, visits = 8, 50
			for range clients {
				client := &http.Client{Transport: &http.Transport{}, Timeout: 30 * time.Second}
				wg.Go(func() {
					for i := range visits {
						number, err := visitPage(client, footfall.url(), i%7)
						assert.NoError(t, err)
						l.note(i%7, number, time.Now(), err)
					}
					client.CloseIdleConnections()
				})
			}
			wg.Wait()
			response, _ := footfall.get(t, "/api/stats")
			assert.Equal(t, http.StatusOK, response.StatusCode)

			direct := openTestStore(t, c.URL(mode))
			lost, doubled := l.compare(rowOf(t, direct, prepared(t, direct)))
			assert.Zero(t, lost)
			assert.Zero(t, doubled)
			requireExactly(t, direct, clients*visits)

			// The answer of a batch is lost between program and pooler.
			cutter, cut := newCutter(t, databaseURL)
			r := newTestRecorder(t, openTestStore(t, cut+"&default_query_exec_mode="+mode))
			for i := range int64(10) {
				cutter.arm(cutAnswer)
				require.Equal(t, []int64{i + 1}, numbersOf(t, hand(t, r, numbered(1))))
			}
			require.NoError(t, run(t.Context(), []string{"verify"}, getenv, &out), out.String())
			footfall.stop()
			require.NoError(t, <-footfall.ended)
		})
	}
}
