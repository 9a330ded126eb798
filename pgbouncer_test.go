package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

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
	ini := filepath.Join(c.sockets, "pgbouncer.ini")
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
`, c.sockets), 0o644))
	cmd := exec.Command(bin, ini)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.as} // it refuses root
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		assert.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		cmd.Wait() // a pooler that a signal ended
	})
	through := func(database string) string {
		return "postgres://footfall@/" + database + "?port=6432&host=" + url.QueryEscape(c.sockets)
	}
	s := openTestStore(t, through("postgres")+"&default_query_exec_mode=simple_protocol")
	eventually(t, "PgBouncer answers", func() bool { return s.reads.PingContext(t.Context()) == nil })
	return through
}

// Behind a pooler a statement cannot be prepared on one connection and run on
// another. Both ways of pgx around that work.
func TestBehindPgBouncer(t *testing.T) {
	c := newCluster(t)
	through := startPgBouncer(t, c)
	for _, mode := range []string{"exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			require.NoError(t, c.createDatabase(t.Context(), mode))
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

			direct := openTestStore(t, c.url(mode))
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
