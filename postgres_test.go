package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// beFootfall in the environment makes the test binary the program itself, so
// that tests can start it as a process, signal it and kill it.
const beFootfall = "FOOTFALL_TEST_MAIN"

// postgres is the server that all tests share; each has databases of its own.
var postgres struct {
	url   *url.URL // of the database admin is connected to
	admin *sql.DB
}

func TestMain(m *testing.M) {
	if os.Getenv(beFootfall) != "" {
		main()
		os.Exit(0)
	}
	if slices.Contains(os.Args, "-test.fuzzworker") {
		os.Exit(m.Run()) // one of several; what is fuzzed needs no database
	}
	status, err := withPostgres(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests:", err)
		os.Exit(1)
	}
	os.Exit(status)
}

// withPostgres runs the tests on the server of TEST_DATABASE_URL, whose role
// must be allowed to create databases, or on a private one.
func withPostgres(run func() int) (status int, err error) {
	given := os.Getenv("TEST_DATABASE_URL")
	if given == "" {
		dir, err := clusterDir()
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
		c, err := startCluster(context.Background(), dir, fastOptions...)
		if err != nil {
			return 0, err
		}
		defer c.stop()
		given = c.url("postgres")
	}
	if postgres.url, err = url.Parse(given); err != nil {
		return 0, fmt.Errorf("TEST_DATABASE_URL: %w", err)
	}
	if postgres.admin, err = sql.Open("pgx", given); err != nil {
		return 0, fmt.Errorf("TEST_DATABASE_URL: %w", err)
	}
	defer postgres.admin.Close()
	return run(), nil
}

// fastOptions spare a server whose data are thrown away the waits for the
// disk, and let all tests connect at once.
var fastOptions = []string{"fsync=off", "full_page_writes=off", "max_connections=400", "autovacuum=off"}

// clusterDir makes a folder that another account can enter, as the server's
// must where the tests run as root.
func clusterDir() (string, error) {
	dir, err := os.MkdirTemp("", "footfall-test")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// newDatabase makes an empty database for one test and returns its DATABASE_URL.
func newDatabase(t testing.TB) string {
	t.Helper()
	name := "test_" + strings.ToLower(rand.Text())
	_, err := postgres.admin.ExecContext(t.Context(), "CREATE DATABASE "+name)
	require.NoError(t, err)
	t.Cleanup(func() {
		// The test's own context is already canceled here.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
		defer cancel()
		_, err := postgres.admin.ExecContext(ctx, "DROP DATABASE "+name+" WITH (FORCE)")
		assert.NoError(t, err)
	})
	u := *postgres.url
	u.Path = "/" + name
	return u.String()
}

// connConfig reads a DATABASE_URL as the program does.
func connConfig(t testing.TB, databaseURL string) *pgx.ConnConfig {
	t.Helper()
	cfg, err := loadConfig(environment("DATABASE_URL", databaseURL))
	require.NoError(t, err)
	return cfg.Database
}

// environment is a getenv with these variables alone.
func environment(pairs ...string) func(string) string {
	return func(key string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == key {
				return pairs[i+1]
			}
		}
		return ""
	}
}

// openTestStore opens a database for one test.
func openTestStore(t testing.TB, databaseURL string) *store {
	t.Helper()
	s := openStore(connConfig(t, databaseURL))
	t.Cleanup(func() { assert.NoError(t, s.close()) })
	return s
}

// newStore opens a new database, prepared to count.
func newStore(t testing.TB) *store {
	t.Helper()
	s := openTestStore(t, newDatabase(t))
	prepared(t, s)
	return s
}

// prepared brings a database to where counting can begin.
func prepared(t testing.TB, s *store) hasher {
	t.Helper()
	h, err := prepareWith(t, s, nil)
	require.NoError(t, err)
	return h
}

func prepareWith(t testing.TB, s *store, key []byte) (hasher, error) {
	return prepareDatabase(t.Context(), s.reads, key, slog.New(slog.DiscardHandler))
}

// holdLock runs a statement that takes a lock, and keeps that until release is
// called or the test ends.
func holdLock(t testing.TB, s *store, statement string) (release func()) {
	t.Helper()
	tx, err := s.reads.BeginTx(context.WithoutCancel(t.Context()), nil)
	require.NoError(t, err)
	_, err = tx.ExecContext(t.Context(), statement)
	require.NoError(t, err)
	t.Cleanup(func() { tx.Rollback() })
	return func() { require.NoError(t, tx.Rollback()) }
}

// queryInt reads one number.
func queryInt(t testing.TB, db *sql.DB, query string, args ...any) int64 {
	t.Helper()
	var n int64
	require.NoError(t, db.QueryRowContext(t.Context(), query, args...).Scan(&n))
	return n
}

// alterDatabase gives the database a default for new connections, such as
// "work_mem = 64".
func alterDatabase(t testing.TB, s *store, setting string) {
	t.Helper()
	execute(t, s.reads, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET `+setting+`', current_database()); END $$`)
}

// execute runs SQL that must succeed.
func execute(t testing.TB, db *sql.DB, query string, args ...any) {
	t.Helper()
	_, err := db.ExecContext(t.Context(), query, args...)
	require.NoError(t, err)
}

// testCluster is a server that one test has to itself, to stop it and to start
// it again.
type testCluster struct {
	*cluster
	options []string
}

func newCluster(t testing.TB, options ...string) *testCluster {
	t.Helper()
	dir, err := clusterDir()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	options = append(fastOptions[:len(fastOptions):len(fastOptions)], options...)
	c, err := startCluster(t.Context(), dir, options...)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.stop()) })
	require.NoError(t, c.createDatabase(t.Context(), "footfall"))
	return &testCluster{c, options}
}

// end sends the server a signal that ends it, and waits for that: SIGINT shuts
// it down, SIGQUIT lets it fall without a checkpoint.
func (c *testCluster) end(t testing.TB, signal syscall.Signal) {
	t.Helper()
	pid := serverPID(t, c.dir)
	require.NoError(t, syscall.Kill(pid, signal))
	eventually(t, "the server has ended", func() bool {
		_, err := os.Stat(filepath.Join(c.data(), "postmaster.pid")) // its last act, if it has one, is to remove this
		return err != nil || syscall.Kill(pid, 0) == syscall.ESRCH
	})
}

// begin starts the ended server again, on the same socket.
func (c *testCluster) begin(t testing.TB) {
	t.Helper()
	require.NoError(t, c.launch(c.options...))
}

// eventually awaits a condition, looking every 5 ms.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(60 * time.Second)
	for !condition() {
		select {
		case <-tick.C:
		case <-late:
			require.FailNow(t, "never came: "+what)
		}
	}
}

// logLines gathers what a program prints, for tests that read it.
type logLines struct {
	t       testing.TB
	mu      sync.Mutex
	text    bytes.Buffer
	dropped bool
}

// drop ends the gathering: what follows is of no interest, and much.
func (l *logLines) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropped = true
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dropped {
		return len(b), nil
	}
	l.t.Output().Write(b)
	return l.text.Write(b)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// newLog returns a logger and what it has written.
func newLog(t testing.TB) (*slog.Logger, *logLines) {
	lines := &logLines{t: t}
	return slog.New(slog.NewJSONHandler(lines, &slog.HandlerOptions{Level: slog.LevelDebug})), lines
}

// testFile writes a file for one test and returns its path.
func testFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}
