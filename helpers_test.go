package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"footfall/internal/devdb"
	"footfall/internal/postgres"
	"footfall/internal/visitor"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// beFootfall in the environment makes the test binary the program itself, so
// that tests can start it as a process, signal it and kill it.
const beFootfall = "FOOTFALL_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(beFootfall) != "" {
		main()
		os.Exit(0)
	}
	status := m.Run()
	if err := errors.Join(stopPostgres(), removeInitialised()); err != nil {
		fmt.Fprintln(os.Stderr, "tests:", err)
		status = 1
	}
	os.Exit(status)
}

// sharedServer is PostgreSQL for all tests; each has databases of its own.
type sharedServer struct {
	url   *url.URL // of the database that admin is connected to
	admin *sql.DB
}

// sharedPostgres is the server of TEST_DATABASE_URL, whose role must be allowed to
// create databases, or a private one. It starts when the first test asks for it.
var sharedPostgres = sync.OnceValues(func() (*sharedServer, error) {
	given := os.Getenv("TEST_DATABASE_URL")
	if given == "" {
		dir, err := clusterDir()
		if err != nil {
			return nil, err
		}
		c, err := devdb.Start(context.Background(), dir, fastOptions...)
		if err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
		stopPostgres = func() error { return errors.Join(c.Stop(), os.RemoveAll(dir)) }
		given = c.URL("postgres")
	}
	u, err := url.Parse(given)
	if err != nil {
		return nil, fmt.Errorf("TEST_DATABASE_URL: %w", err)
	}
	admin, err := sql.Open("pgx", given)
	return &sharedServer{u, admin}, err
})

// stopPostgres ends the private server, if sharedPostgres has started one.
var stopPostgres = func() error { return nil }

// initialisedData returns the data directory of a server that has never counted, for
// newCluster to copy: initdb takes five times as long.
var initialisedData = sync.OnceValues(func() (string, error) {
	dir, err := clusterDir()
	if err != nil {
		return "", err
	}
	removeInitialised = func() error { return os.RemoveAll(dir) }
	c, err := devdb.Start(context.Background(), dir)
	if err != nil {
		return "", err
	}
	return c.Data(), c.Stop()
})

var removeInitialised = func() error { return nil }

// fastOptions spare a server whose data are thrown away the waits for the
// disk, and let all tests connect at once.
var fastOptions = []string{"fsync=off", "full_page_writes=off", "max_connections=400", "autovacuum=off"}

// clusterDir makes a directory that another account can enter, as the server's
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
	server, err := sharedPostgres()
	require.NoError(t, err)
	_, err = server.admin.ExecContext(t.Context(), "CREATE DATABASE "+name+" STRATEGY file_copy") // half the time, without fsync
	require.NoError(t, err)
	t.Cleanup(func() {
		// The test's own context is already canceled here.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
		defer cancel()
		_, err := server.admin.ExecContext(ctx, "DROP DATABASE "+name+" WITH (FORCE)")
		assert.NoError(t, err)
	})
	u := *server.url
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
func prepared(t testing.TB, s *store) visitor.Hasher {
	t.Helper()
	h, err := prepareWith(t, s, nil)
	require.NoError(t, err)
	return h
}

func prepareWith(t testing.TB, s *store, key []byte) (visitor.Hasher, error) {
	h, err := prepareDatabase(t.Context(), s.reads, key, slog.New(slog.DiscardHandler))
	if err == nil {
		s.fingerprint = h.Fingerprint()
	}
	return h, err
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
	*devdb.Cluster
	options []string
}

func newCluster(t testing.TB, options ...string) *testCluster {
	t.Helper()
	dir, err := clusterDir()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	initialised, err := initialisedData()
	require.NoError(t, err)
	output, err := exec.Command("cp", "-a", initialised, filepath.Join(dir, "data")).CombinedOutput()
	require.NoError(t, err, "%s", output)
	options = append(fastOptions[:len(fastOptions):len(fastOptions)], options...)
	c, err := devdb.Start(t.Context(), dir, options...)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Stop()) })
	return &testCluster{c, options}
}

// end sends the server a signal that ends it, and waits for that: SIGINT shuts
// it down, SIGQUIT lets it fall without a checkpoint.
func (c *testCluster) end(t testing.TB, signal syscall.Signal) {
	t.Helper()
	pid := serverPID(t, c.Dir)
	require.NoError(t, syscall.Kill(pid, signal))
	eventually(t, "the server has ended", func() bool {
		_, err := os.Stat(filepath.Join(c.Data(), "postmaster.pid")) // its last act, if it has one, is to remove this
		return err != nil || syscall.Kill(pid, 0) == syscall.ESRCH
	})
}

// promote makes a standby a primary.
func (c *testCluster) promote(t testing.TB) {
	t.Helper()
	output, err := c.Command(t.Context(), "pg_ctl", "promote", "--wait", "--pgdata", c.Data()).CombinedOutput()
	require.NoError(t, err, "%s", output)
}

// begin starts the ended server again, on the same socket.
func (c *testCluster) begin(t testing.TB) {
	t.Helper()
	require.NoError(t, c.Launch(c.options...))
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

// running is a service that was started like a user would.
type running struct {
	addr   string // host:port or the socket's path
	client *http.Client
	lines  *logLines
	stop   func()     // as an operator does; ended follows
	ended  chan error // what run returned; of a process, what Wait did
}

var listening = regexp.MustCompile(`"?msg"?[:=]"?listening"?,? ?"?addr"?[:=]"?([^", ]+)`)

// awaitListening returns when the service says where it listens.
func (r *running) awaitListening(t testing.TB) {
	t.Helper()
	r.awaitLine(t, listening.MatchString)
	r.addr = listening.FindStringSubmatch(r.lines.String())[1]
	r.client = &http.Client{Transport: &http.Transport{DialContext: dial(r.addr)}}
	t.Cleanup(r.client.CloseIdleConnections)
}

// dial is a transport's DialContext to one host:port or socket's path, whatever
// the URL says.
func dial(addr string) func(context.Context, string, string) (net.Conn, error) {
	network := "tcp"
	if strings.HasPrefix(addr, "/") {
		network = "unix"
	}
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
}

// awaitReady returns when the service counts.
func (r *running) awaitReady(t testing.TB) {
	t.Helper()
	r.awaitLine(t, regexp.MustCompile(`msg"?[:=]"?ready"?`).MatchString)
}

func (r *running) awaitLine(t testing.TB, isIt func(lines string) bool) {
	t.Helper()
	eventually(t, "the line in the log", func() bool {
		select {
		case err := <-r.ended:
			require.FailNow(t, "ended before", "%v", err)
		default:
		}
		return isIt(r.lines.String())
	})
}

// get asks for a path and returns the answer with its body.
func (r *running) get(t testing.TB, path string, headers ...string) (*http.Response, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), "GET", "http://footfall"+path, nil)
	require.NoError(t, err)
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	answer, err := r.client.Do(request)
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer, string(body)
}

// url is where any client finds the page.
func (r *running) url() string { return "http://" + r.addr + "/" }

// start runs the service in this process, on a free port unless pairs say
// otherwise, until the test ends or stop is called.
func start(t testing.TB, pairs ...string) *running {
	t.Helper()
	r := startUnready(t, pairs...)
	r.awaitReady(t)
	return r
}

// startUnready does not wait for the database.
func startUnready(t testing.TB, pairs ...string) *running {
	t.Helper()
	return startFunc(t, func(ctx context.Context, out io.Writer) error {
		return run(ctx, []string{"serve"}, environment(append(pairs, "LISTEN_ADDR", "127.0.0.1:0")...), out)
	})
}

// startFunc runs a program that serves, until it listens.
func startFunc(t testing.TB, program func(context.Context, io.Writer) error) *running {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	r := &running{lines: &logLines{t: t}, stop: stop, ended: make(chan error, 1)}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		r.ended <- program(ctx, r.lines)
	}()
	t.Cleanup(func() { stop(); <-finished })
	r.awaitListening(t)
	return r
}

// command prepares this test binary to run as footfall. pairs are its whole
// environment.
func command(t testing.TB, args []string, pairs ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, args...)
	// Without GOCOVERDIR a binary built for coverage adds a warning to what it says.
	cmd.Env = []string{beFootfall + "=yes", "PATH=" + os.Getenv("PATH"), "GOCOVERDIR=" + t.TempDir()}
	for i := 0; i < len(pairs); i += 2 {
		cmd.Env = append(cmd.Env, pairs[i]+"="+pairs[i+1])
	}
	return cmd
}

// startProcess starts a prepared process and waits until it counts.
func startProcess(t testing.TB, cmd *exec.Cmd) *running {
	t.Helper()
	r := &running{lines: &logLines{t: t}, ended: make(chan error, 1)}
	cmd.Stdout, cmd.Stderr = r.lines, r.lines
	require.NoError(t, cmd.Start())
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		r.ended <- cmd.Wait()
	}()
	r.stop = func() { cmd.Process.Signal(syscall.SIGTERM) } // in vain where it has ended
	t.Cleanup(func() {
		r.stop()
		select {
		case <-finished:
		case <-time.After(30 * time.Second):
			cmd.Process.Kill()
			<-finished
		}
	})
	r.awaitListening(t)
	r.awaitReady(t)
	return r
}

// testServer is the whole service but for its listener.
type testServer struct {
	*server
	handler http.Handler
	lines   *logLines
}

// newTestServer makes a service on a database that may be new. pairs are settings.
func newTestServer(t testing.TB, databaseURL string, pairs ...string) *testServer {
	t.Helper()
	cfg, err := loadConfig(environment(append(pairs, "DATABASE_URL", databaseURL)...))
	require.NoError(t, err)
	log, lines := newLog(t)
	s := newServer(cfg, log)
	t.Cleanup(func() { assert.NoError(t, s.store.close()) })
	require.NoError(t, s.prepare(t.Context()))
	t.Cleanup(func() { closeRecorder(t, s.counter.Load().recorder) })
	return &testServer{s, s.routes(), lines}
}

// awaitReady asks for readiness until it is there: on a busy machine a try of a
// visit may take longer than its second.
func (s *testServer) awaitReady(t testing.TB) {
	t.Helper()
	eventually(t, "readiness", func() bool {
		w := s.ask("GET", "/readyz")
		return w.Code == http.StatusOK && w.Body.String() == "ready\n"
	})
}

// ask sends one request. headers are name, value pairs; the peer is a header
// here as well: "Peer". Without one it is 192.0.2.1.
func (s *testServer) ask(method, path string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Peer" {
			r.RemoteAddr = headers[i+1]
			continue
		}
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	return w
}

// newTestRecorder returns a recorder that is closed after the test.
func newTestRecorder(t testing.TB, s *store) *recorder {
	t.Helper()
	if s.fingerprint == "" {
		s.fingerprint, _, _ = readKey(t.Context(), s.reads) // in vain where there is no database
	}
	log, _ := newLog(t)
	r := newRecorder(s, log, newMetrics())
	t.Cleanup(func() { closeRecorder(t, r) })
	return r
}

func closeRecorder(t testing.TB, r *recorder) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	assert.NoError(t, r.close(ctx))
}

// numbered is the visitor number i.
func numbered(i int) (id visitor.ID) {
	binary.BigEndian.PutUint64(id[8:], uint64(i))
	return id
}

// hand gives visits to the recorder in one batch, as far as one day allows,
// and does not wait for it. Unlike a real visit they have a minute's time, so
// that a slow machine gives none of them up.
func hand(t testing.TB, r *recorder, ids ...visitor.ID) []visit {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var visits []visit
	for _, id := range ids {
		v, err := r.join(id)
		require.NoError(t, err)
		v.deadline = time.Now().Add(time.Minute)
		visits = append(visits, v)
	}
	r.signal()
	return visits
}

// numbersOf awaits visits and returns the number of each.
func numbersOf(t testing.TB, visits []visit) []int64 {
	t.Helper()
	var ns []int64
	for _, v := range visits {
		<-v.done
		require.NoError(t, v.err)
		ns = append(ns, v.standing().visits)
	}
	return ns
}

// isDone reports whether the visit's batch has ended.
func isDone(v visit) bool {
	select {
	case <-v.done:
		return true
	default:
		return false
	}
}

// underWay awaits that the recorder has sent all that it was handed.
func underWay(t testing.TB, r *recorder) {
	t.Helper()
	eventually(t, "the batch is under way", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.queue) == 0
	})
}

// holdTotals locks the row that every batch needs, and returns how to let go.
func holdTotals(t testing.TB, s *store) (release func()) {
	t.Helper()
	return holdLock(t, s, `SELECT FROM totals FOR UPDATE`)
}

// blocked counts the database's backends that wait for a lock.
func blocked(t testing.TB, s *store) (n int) {
	t.Helper()
	scan(t, s, &n, `
		SELECT count(*)
		FROM pg_stat_activity
		WHERE datname = current_database() AND wait_event_type = 'Lock'`)
	return n
}

// awaitQuiet returns when the database does nothing: no given-up batch is left
// to be counted after all.
func awaitQuiet(t testing.TB, s *store) {
	t.Helper()
	eventually(t, "the database is quiet", func() bool {
		var active int
		scan(t, s, &active, `
			SELECT count(*)
			FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'`)
		return active == 0
	})
}

// scan reads one value, also over a pool whose connections a fault has broken.
func scan(t testing.TB, s *store, value any, query string, args ...any) {
	t.Helper()
	require.NoError(t, postgres.Repeat(t.Context(), func() error { return s.reads.QueryRowContext(t.Context(), query, args...).Scan(value) }))
}

func visitsOf(t testing.TB, s *store, id visitor.ID) (n int64) {
	t.Helper()
	scan(t, s, &n, `SELECT COALESCE((SELECT visits FROM visitors WHERE id = $1), 0)`, id[:])
	return n
}

// requireExactly requires that a recount finds what the totals say, and that
// they say visits.
func requireExactly(t testing.TB, s *store, visits int64) {
	t.Helper()
	requireVerified(t, s)
	now, _, err := s.look(t.Context(), utcDay(time.Now()), nil)
	require.NoError(t, err)
	require.Equal(t, visits, now.visits, "all visits")
}

// noon of a day in November 2026.
func november(day int) time.Time { return time.Date(2026, time.November, day, 12, 0, 0, 0, time.UTC) }

// someone is a visitor; each name another one.
func someone(name string) visitor.ID {
	var id visitor.ID
	copy(id[:], name)
	return id
}

// count records one visit and returns its number.
func count(t testing.TB, r *recorder, who string) int64 {
	t.Helper()
	v, err := r.record(someone(who))
	require.NoError(t, err)
	return v.standing().visits
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

// devFolder is a cluster's directory that does not exist yet, in one that the
// server's account can enter.
func devFolder(t testing.TB) string {
	t.Helper()
	dir, err := clusterDir()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	return filepath.Join(dir, "footfall")
}

// startDev runs footfall dev in this process.
func startDev(t testing.TB, dir string, pairs ...string) *running {
	t.Helper()
	r := startFunc(t, func(ctx context.Context, out io.Writer) error {
		return dev(ctx, dir, environment(append(pairs, "LISTEN_ADDR", "127.0.0.1:0")...), out)
	})
	r.awaitReady(t)
	return r
}

// developer prepares footfall dev as an ordinary user: the account nobody where
// the tests run as root, else the one that runs them.
func developer(t testing.TB, home string) *exec.Cmd {
	t.Helper()
	cmd := command(t, []string{"dev"}, "HOME", home, "XDG_CACHE_HOME", filepath.Join(home, "cache"), "LISTEN_ADDR", "127.0.0.1:0", "GOCOVERDIR", home)
	// A process group, so that a kill hits nothing else.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Dir = home
	if os.Getuid() != 0 {
		return cmd
	}
	nobody, err := user.Lookup("nobody")
	require.NoError(t, err)
	uid, err := strconv.Atoi(nobody.Uid)
	require.NoError(t, err)
	gid, err := strconv.Atoi(nobody.Gid)
	require.NoError(t, err)
	require.NoError(t, os.Chown(home, uid, gid))
	// This account cannot enter the directory of the test binary.
	binary, err := os.ReadFile(cmd.Path)
	require.NoError(t, err)
	cmd.Path = filepath.Join(home, "program")
	require.NoError(t, os.WriteFile(cmd.Path, binary, 0o755))
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return cmd
}

// serverPID reads the first line of postmaster.pid.
func serverPID(t testing.TB, dir string) int {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	require.NoError(t, err)
	line, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(line)
	require.NoError(t, err)
	return pid
}

// metric returns the value of one line of /metrics, "" when it is not there.
func metric(text, series string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// requireValidMetrics has Prometheus' own tool read the text and judge the names.
func requireValidMetrics(t testing.TB, text string) {
	t.Helper()
	check := exec.CommandContext(t.Context(), "promtool", "check", "metrics")
	check.Stdin = strings.NewReader(text)
	output, err := check.CombinedOutput()
	require.NoError(t, err, "promtool, of Debian's package prometheus: %s", output)
	assert.Empty(t, string(output))
	// OpenMetrics, whose parsers read this as well, names a counter's family without _total:
	// a gauge of that name would be the same family.
	families := map[string]bool{}
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(text, -1) {
		family := strings.TrimSuffix(match[1], "_total")
		assert.False(t, families[family], family)
		families[family] = true
	}
}

// aTally has visits on its last days, the last number today's.
func aTally(visits ...int64) *tally {
	t := &tally{background: background{since: monday.AddDate(-1, 0, 0), database: "PostgreSQL 17.2"}}
	for i := range historyDays {
		d := day{date: monday.AddDate(0, 0, i-historyDays+1)}
		if j := i - historyDays + len(visits); j >= 0 {
			d.visits = visits[j]
			d.visitors, d.newVisitors = (d.visits+1)/2, d.visits/2
		}
		t.visits += d.visits
		t.visitors += d.newVisitors
		t.days = append(t.days, d)
	}
	return t
}

// rendered is the page for a visitor; tl is nil without a database.
func rendered(t *testing.T, p *page, tl *tally, g greeting, own standing) string {
	t.Helper()
	w := httptest.NewRecorder()
	require.NoError(t, p.of(tl).write(w, httptest.NewRequest("GET", "/", nil), http.StatusOK, g, own))
	return w.Body.String()
}

// pageText is what a reader sees of a page, on one line.
func pageText(body string) string {
	text := html.UnescapeString(someSpace.ReplaceAllString(anyTag.ReplaceAllString(body, " "), " "))
	return strings.TrimSpace(strings.ReplaceAll(text, " .", "."))
}

// address is the visitors' address number i.
func address(i int) string { return fmt.Sprintf("203.0.%d.%d", i/256, i%256) }

// visitPage makes a visit from address number i and returns the number that
// the page says. Any error means that the visit may or may not be counted.
func visitPage(client *http.Client, url string, i int) (int64, error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("X-Forwarded-For", address(i))
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err
	}
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("status %s", response.Status)
	}
	match := pageNumber.FindSubmatch(body)
	if match == nil {
		return 0, fmt.Errorf("no number on the page")
	}
	return strconv.ParseInt(strings.ReplaceAll(string(match[1]), ",", ""), 10, 64)
}

// ledger is what the clients know since they last compared: the numbers that
// each visitor was told, and how many visits were not confirmed.
type ledger struct {
	mu          sync.Mutex
	rows        map[int]int64 // by visitor, at the last comparison
	told        map[int]map[int64]bool
	unconfirmed map[int]int64
	twice       int64 // numbers that a visitor was told twice

	allConfirmed, allUnconfirmed int64
	last                         time.Time // when the newest confirmed visit was sent
	watched                      time.Time // by watch
	again                        time.Time // the first confirmation of a visit sent after it; zero: none yet
}

func newLedger() *ledger {
	return &ledger{rows: map[int]int64{}, told: map[int]map[int64]bool{}, unconfirmed: map[int]int64{}}
}

// note takes in what a visit that was sent at that time got.
func (l *ledger) note(visitor int, number int64, sent time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	told := l.told[visitor]
	if told == nil {
		told = map[int64]bool{}
		l.told[visitor] = told
	}
	if err != nil {
		l.unconfirmed[visitor]++
		l.allUnconfirmed++
		return
	}
	if told[number] {
		l.twice++
	}
	told[number] = true
	l.allConfirmed++
	if sent.After(l.last) {
		l.last = sent
	}
	if l.again.IsZero() && sent.After(l.watched) {
		l.again = time.Now()
	}
}

// countedSince reports whether a visit that was sent after start is confirmed.
func (l *ledger) countedSince(start time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last.After(start)
}

// watch starts the clock: something has just broken.
func (l *ledger) watch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watched, l.again = time.Now(), time.Time{}
}

// back returns how long after watch visits were confirmed again; 0: not yet.
func (l *ledger) back() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.again.IsZero() {
		return 0
	}
	return l.again.Sub(l.watched)
}

// compare holds the ledger against the visitors' rows, and begins a new one.
// No visits may come meanwhile. A visit is lost when it was confirmed and is
// not in its visitor's row; doubled is what a row has beyond all visits
// made, and a number told twice.
func (l *ledger) compare(row func(visitor int) int64) (lost, doubled int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	doubled = l.twice
	for visitor, told := range l.told {
		before, now := l.rows[visitor], row(visitor)
		confirmed := int64(len(told))
		lost += max(0, before+confirmed-now)
		doubled += max(0, now-before-confirmed-l.unconfirmed[visitor])
		for number := range told {
			if number > now {
				lost++
			}
			if number <= before {
				doubled++
			}
		}
		l.rows[visitor] = now
	}
	l.told, l.unconfirmed, l.twice = map[int]map[int64]bool{}, map[int]int64{}, 0
	return lost, doubled
}

// rowOf reads the visits of address number i.
func rowOf(t testing.TB, s *store, h visitor.Hasher) func(i int) int64 {
	return func(i int) int64 {
		client, ok := visitor.Parse(address(i))
		require.True(t, ok)
		return visitsOf(t, s, h.ID(client))
	}
}

// cutter is between a program and its database and cuts connections. What
// begins with a Bind message executes a prepared statement, here a batch; what
// comes back is its answer. On a new connection the statement is prepared first,
// in a round trip that commits nothing and is left alone.
type cutter struct {
	ln       net.Listener
	network  string // of the database
	database string

	mu    sync.Mutex
	armed cut
	held  bool          // no answer is passed on
	mute  bool          // the next query is swallowed, and the connection stays open
	delay time.Duration // of the first answer on each connection
	cuts  int
	onCut func()                // may be nil
	conns map[net.Conn]net.Conn // from the program; to the database
	left  map[net.Conn]bool     // to the database, which does not learn that the program is gone
}

type cut int

const (
	noCut      cut = iota
	cutRequest     // the request is not passed on
	cutAfter       // the request is passed on, its answer not awaited
	cutAnswer      // the answer has come, and is not passed on
)

// newCutter listens in front of the database of databaseURL and returns the
// DATABASE_URL that leads through it.
func newCutter(t testing.TB, databaseURL string) (*cutter, string) {
	t.Helper()
	cfg := connConfig(t, databaseURL)
	c := &cutter{conns: map[net.Conn]net.Conn{}, left: map[net.Conn]bool{}}
	c.network, c.database = pgconn.NetworkAddress(cfg.Host, cfg.Port)
	var err error
	c.ln, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go c.accept()
	t.Cleanup(func() {
		c.ln.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		for client, server := range c.conns {
			client.Close()
			server.Close()
		}
		for server := range c.left {
			server.Close()
		}
	})
	addr := c.ln.Addr().(*net.TCPAddr)
	through := url.URL{
		Scheme: "postgres", User: url.UserPassword(cfg.User, cfg.Password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(addr.Port)),
		Path: "/" + cfg.Database, RawQuery: "sslmode=disable",
	}
	return c, through.String()
}

// arm has the next request cut.
func (c *cutter) arm(how cut) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = how
}

// hold has every answer withheld, or passed on again, while requests pass: the
// program learns nothing of its database.
func (c *cutter) hold(answers bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = answers
}

// swallow has the next query come to nothing, as some proxies do with the first.
func (c *cutter) swallow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute = true
}

func (c *cutter) swallows(request byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	is := c.mute && (request == 'Q' || request == 'P')
	c.mute = c.mute && !is
	return is
}

// slow has the database seem far away: the first answer on each connection comes
// this late.
func (c *cutter) slow(delay time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay = delay
}

func (c *cutter) firstDelay() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.delay
}

func (c *cutter) isHeld() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held
}

// done reports whether the armed cut was made.
func (c *cutter) done() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.armed == noCut
}

// fire returns the armed cut and disarms it.
func (c *cutter) fire() cut {
	c.mu.Lock()
	defer c.mu.Unlock()
	how := c.armed
	c.armed = noCut
	if how != noCut {
		c.cuts++
		if c.onCut != nil {
			c.onCut()
		}
	}
	return how
}

func (c *cutter) accept() {
	for {
		client, err := c.ln.Accept()
		if err != nil {
			return // the test is over
		}
		server, err := net.Dial(c.network, c.database)
		if err != nil {
			client.Close() // the database is away: so it seems to the program
			continue
		}
		c.mu.Lock()
		c.conns[client] = server
		c.mu.Unlock()
		go c.pass(client, server)
	}
}

// abandon cuts all connections off the program, while the database believes
// that it is still there: so a broken network looks.
func (c *cutter) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for client, server := range c.conns {
		c.left[server] = true
		delete(c.conns, client)
		client.Close()
	}
}

// cancelRequest is the length in bytes of the message that asks the database
// to stop what a broken connection was doing; the one that opens a connection
// is longer. A network that breaks loses it as well.
const cancelRequest = 16

// pass relays a connection until either side ends or it is cut.
func (c *cutter) pass(client, server net.Conn) {
	withhold := make(chan struct{}) // closed: the answer is not to be passed on
	answered := make(chan struct{}) // closed: no more answers
	go func() {
		defer close(answered)
		defer client.Close()
		buf := make([]byte, 32<<10)
		for first := true; ; first = false {
			n, err := server.Read(buf)
			if first {
				time.Sleep(c.firstDelay())
			}
			select {
			case <-withhold:
				return
			default:
			}
			if n > 0 && !c.isHeld() {
				if _, werr := client.Write(buf[:n]); werr != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 32<<10)
	for first := true; ; first = false {
		n, err := client.Read(buf)
		how := noCut
		if first && n == cancelRequest {
			break
		}
		if n > 0 {
			if c.swallows(buf[0]) {
				continue
			}
			if buf[0] == 'B' {
				how = c.fire()
			}
			if how == cutRequest {
				break
			}
			if how == cutAnswer {
				close(withhold)
			}
			if _, werr := server.Write(buf[:n]); werr != nil {
				break
			}
		}
		if how == cutAnswer {
			<-answered
		}
		if how != noCut || err != nil {
			break
		}
	}
	client.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, client)
	if !c.left[server] {
		server.Close()
	}
}
