package main

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// newSyncStandby makes a standby without which c confirms nothing.
func newSyncStandby(t testing.TB, c *testCluster) *testCluster {
	t.Helper()
	standby := newStandby(t, c)
	primary := openTestStore(t, c.url("footfall"))
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
	require.NoError(t, c.own(data))
	output, err := c.command(t.Context(), "pg_basebackup", "--pgdata", data, "--write-recovery-conf", "--checkpoint=fast",
		"--host", c.sockets, "--username", "footfall").CombinedOutput()
	require.NoError(t, err, "%s", output)
	standby, err := startCluster(t.Context(), dir, c.options...)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, standby.stop()) })
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

// The primary dies while visits are counted, and the standby takes its place.
func TestFailover(t *testing.T) {
	primary := newCluster(t)
	p := openTestStore(t, primary.url("footfall"))
	prepared(t, p)
	standby := newSyncStandby(t, primary)

	s := openTestStore(t, "postgres://footfall@/footfall?target_session_attrs=read-write&host="+
		url.QueryEscape(primary.sockets+","+standby.sockets))
	r := newTestRecorder(t, s)
	l := newLedger()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for visitor := range 16 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				sent := time.Now()
				v, err := r.record(numbered(visitor))
				var number int64
				if err == nil {
					number = v.number()
				}
				l.note(visitor, number, sent, err)
			}
		})
	}
	eventually(t, "counting", func() bool { return l.countedSince(time.Now().Add(-time.Second)) })
	primary.end(t, syscall.SIGKILL)
	start := time.Now()
	output, err := standby.command(t.Context(), "pg_ctl", "promote", "--wait", "--pgdata", standby.data()).CombinedOutput()
	require.NoError(t, err, "%s", output)
	l.watch()
	eventually(t, "counting again", func() bool { return l.back() > 0 })
	t.Logf("counting again %s after the promotion, %s after the primary's death", l.back(), time.Since(start))
	assert.Less(t, l.back(), 5*time.Second)
	close(stop)
	wg.Wait()

	promoted := openTestStore(t, standby.url("footfall"))
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
	for _, end := range []string{"pg_terminate_backend", "pg_cancel_backend"} {
		t.Run(end, func(t *testing.T) {
			primary := newCluster(t)
			s := openTestStore(t, primary.url("footfall"))
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

// A limit, not a promise: a standby that is asynchronous may lack confirmed
// visits when it is promoted.
func TestAsynchronousFailoverLoses(t *testing.T) {
	primary := newCluster(t)
	s := openTestStore(t, primary.url("footfall"))
	prepared(t, s)
	standby := newStandby(t, primary)
	log, _ := newLog(t)
	r := newRecorder(s, log, newMetrics())
	t.Cleanup(func() { r.close(context.WithoutCancel(t.Context())) }) // in vain: its server is gone
	numbersOf(t, hand(t, r, numbered(1)))
	behind := openTestStore(t, standby.url("footfall"))
	eventually(t, "the standby has the first visit", func() bool { return visitsOf(t, behind, numbered(1)) == 1 })
	standby.end(t, syscall.SIGINT)
	assert.Equal(t, []int64{2, 3}, numbersOf(t, hand(t, r, numbered(1), numbered(1))), "confirmed by the primary alone")
	primary.end(t, syscall.SIGKILL)
	standby.begin(t)
	output, err := standby.command(t.Context(), "pg_ctl", "promote", "--wait", "--pgdata", standby.data()).CombinedOutput()
	require.NoError(t, err, "%s", output)
	promoted := openTestStore(t, standby.url("footfall"))
	assert.EqualValues(t, 1, visitsOf(t, promoted, numbered(1)))
	requireExactly(t, promoted, 1)
}
