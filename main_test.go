package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWrongUsage(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		`unknown command "count"; see footfall help`:                                {"count"},
		`unknown command ""; see footfall help`:                                     {""},
		`serve takes no "now"; see footfall help`:                                   {"serve", "now"},
		`version takes no "-v"; see footfall help`:                                  {"version", "-v"},
		`migrate takes no "-statuss"; see footfall help`:                            {"migrate", "-statuss"},
		`migrate takes no "-status"; see footfall help`:                             {"migrate", "-status", "-status"},
		`verify takes no "--all"; see footfall help`:                                {"verify", "--all"},
		`DATABASE_URL is not set, want postgres://user:password@host:5432/database`: nil,
	} {
		t.Run(want, func(t *testing.T) {
			var out bytes.Buffer
			err := run(t.Context(), args, environment(), &out)
			require.EqualError(t, err, want)
			_, usage := errors.AsType[*usageError](err)
			assert.True(t, usage)
			assert.Empty(t, out.String())
		})
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"help"}, {"-h"}, {"--help"}, {"serve", "-h"}, {"migrate", "--help"}} {
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), args, environment(), &out))
		assert.Equal(t, helpText, out.String())
	}
	lines := strings.Split(strings.TrimSuffix(helpText, "\n"), "\n")
	assert.LessOrEqual(t, len(lines), 24, "lines of a screen")
	for _, line := range lines {
		assert.LessOrEqual(t, len(line), 80, line)
	}
	// Every setting that the program asks for is explained.
	loadConfig(func(key string) string {
		assert.Contains(t, helpText, key)
		return ""
	})
}

func TestVersionCommand(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"version"}, environment(), &out))
	assert.Regexp(t, `^footfall \S+ \(build \S+, commit \S+, \S+, go1\.\d+\S*\)\n$`, out.String())
}

// A wrong setting ends the program with status 2 and a line for each mistake.
func TestExitStatus(t *testing.T) {
	t.Parallel()
	cmd := command(t, []string{"serve"}, "DATABASE_URL", "mysql://u:hunter2@h/d", "LISTEN_ADDR", "8080", "VISITOR_KEY", "hunter2")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Run(), &exit)
	assert.Equal(t, 2, exit.ExitCode())
	assert.Empty(t, out.String())
	assert.Equal(t, `footfall: DATABASE_URL has the wrong scheme, want postgres://user:password@host:5432/database
footfall: LISTEN_ADDR is "8080", want host:port, :port or unix:/path
footfall: VISITOR_KEY has 7 bytes, want at least 32, such as the output of: openssl rand -hex 32
`, errs.String())

	cmd = command(t, []string{"healthcheck"}, "LISTEN_ADDR", "127.0.0.1:1")
	require.ErrorAs(t, cmd.Run(), &exit)
	assert.Equal(t, 1, exit.ExitCode())
	assert.NoError(t, command(t, []string{"help"}).Run())
}

// Whatever is wrong with where DATABASE_URL leads, each command says it in one
// sentence without the password.
func TestUnreachableDatabase(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	db := openTestStore(t, c.url("footfall")).reads
	execute(t, db, `ALTER ROLE footfall PASSWORD 'rightright'`)
	require.NoError(t, os.WriteFile(filepath.Join(c.data(), "pg_hba.conf"), []byte("local all all scram-sha-256\n"), 0o600))
	execute(t, db, `SELECT pg_reload_conf()`)
	withPassword := func(user, password, database string) string {
		return "postgres://" + user + ":" + password + "@/" + database + "?host=" + c.sockets
	}
	eventually(t, "passwords are asked for", func() bool {
		s := openStore(connConfig(t, c.url("footfall")))
		defer s.close()
		return s.reads.PingContext(t.Context()) != nil
	})
	require.NoError(t, openTestStore(t, withPassword("footfall", "rightright", "footfall")).reads.PingContext(t.Context()))
	tests := map[string]struct {
		url, want    string
		mayGetBetter bool // so serve does not end
	}{
		"password": {withPassword("footfall", "hunter2", "footfall"), "(SQLSTATE 28P01)", false},
		"user":     {withPassword("nobody", "hunter2", "footfall"), `failed SASL auth: FATAL: password authentication failed for user "nobody" (SQLSTATE 28P01)`, false},
		"database": {withPassword("footfall", "rightright", "fotfall"), `FATAL: database "fotfall" does not exist (SQLSTATE 3D000)`, false},
		"port":     {"postgres://u:hunter2@127.0.0.1:1/d", "dial tcp 127.0.0.1:1: connect: connection refused", true},
		"hosts":    {"postgres://u:hunter2@127.0.0.1:1,127.0.0.2:1/d", "dial tcp 127.0.0.1:1: connect: connection refused", true},
		"socket":   {"postgres://u:hunter2@/d?host=/nowhere", "dial unix /nowhere/.s.PGSQL.5432: connect: no such file or directory", true},
		"name":     {"postgres://u:hunter2@nowhere.invalid/d", "nowhere.invalid", true}, // how names are looked up differs between machines
	}
	for name, tt := range tests {
		commands := [][]string{{"migrate"}, {"migrate", "-status"}, {"verify"}}
		if !tt.mayGetBetter {
			commands = append(commands, []string{"serve"})
		}
		for _, args := range commands {
			t.Run(name+" "+strings.Join(args, " "), func(t *testing.T) {
				var out bytes.Buffer
				err := run(t.Context(), args, environment("DATABASE_URL", tt.url, "LISTEN_ADDR", "127.0.0.1:0"), &out)
				require.ErrorContains(t, err, "DATABASE_URL: failed to connect to `user=")
				assert.Contains(t, err.Error(), tt.want)
				assert.NotContains(t, err.Error(), "\n")
				assert.NotContains(t, err.Error()+out.String(), "hunter2")
			})
		}
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	r := start(t, "DATABASE_URL", url)
	for want := range 3 {
		answer, body := r.get(t, "/")
		require.Equal(t, http.StatusOK, answer.StatusCode)
		assert.Contains(t, body, []string{"<strong>1</strong> time.", "<strong>2</strong> times.", "<strong>3</strong> times."}[want])
	}
	_, port, err := net.SplitHostPort(r.addr)
	require.NoError(t, err)
	for _, settings := range [][]string{{"LISTEN_ADDR", r.addr}, {"LISTEN_ADDR", "0.0.0.0:" + port}, {"PORT", port}} {
		assert.NoError(t, run(t.Context(), []string{"healthcheck"}, environment(settings...), io.Discard))
	}
	err = run(t.Context(), []string{"serve"}, environment("DATABASE_URL", url, "LISTEN_ADDR", r.addr), io.Discard)
	assert.EqualError(t, err, `listen on "`+r.addr+`": another program listens there; stop it or set LISTEN_ADDR`)
	r.stop()
	require.NoError(t, <-r.ended)
	assert.Contains(t, r.lines.String(), `"msg":"migrated","file":"0001_`)
	assert.Contains(t, r.lines.String(), `"msg":"stopped"`)
	assert.Zero(t, queryInt(t, openTestStore(t, url).reads, `SELECT count(*) FROM writers`), "a stopped service leaves no row")

	// Started again it counts on.
	r = start(t, "DATABASE_URL", url, "LOG_FORMAT", "text")
	_, body := r.get(t, "/")
	assert.Contains(t, body, "<strong>4</strong> times.")
}

func TestListenElsewhere(t *testing.T) {
	t.Parallel()
	_, err := listen(t.Context(), "192.0.2.1:80") // an address that no machine has
	require.ErrorContains(t, err, `listen on "192.0.2.1:80": `)
	_, err = listen(t.Context(), "unix:/no/such/folder/web.sock")
	require.ErrorContains(t, err, `listen on "unix:/no/such/folder/web.sock": `)
}

func TestServeOnUnixSocket(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	path := filepath.Join(t.TempDir(), "web.sock")
	// What a killed service leaves behind.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	require.NoError(t, err)
	stale.SetUnlinkOnClose(false)
	require.NoError(t, stale.Close())
	settings := []string{"DATABASE_URL", url, "LISTEN_ADDR", "unix:" + path}

	r := start(t, settings...)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.ModeSocket|0o660, info.Mode())
	for _, client := range []string{"198.51.100.7", "198.51.100.8"} {
		answer, body := r.get(t, "/", "X-Forwarded-For", client)
		require.Equal(t, http.StatusOK, answer.StatusCode)
		assert.Contains(t, pageText(body), "You have visited this page 1 time.")
	}
	_, body := r.get(t, "/")
	assert.Contains(t, pageText(body), "This visit was not counted.")
	assert.NoError(t, run(t.Context(), []string{"healthcheck"}, environment(settings...), io.Discard))
	err = run(t.Context(), []string{"serve"}, environment(settings...), io.Discard)
	assert.EqualError(t, err, `listen on "unix:`+path+`": another program listens there; stop it or set LISTEN_ADDR`)
	assert.NoError(t, run(t.Context(), []string{"healthcheck"}, environment(settings...), io.Discard), "and the first one is not hurt")
	r.stop()
	require.NoError(t, <-r.ended)
	assert.NoFileExists(t, path)

	// A file that is no socket is not ours to remove.
	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	err = run(t.Context(), []string{"serve"}, environment(settings...), io.Discard)
	assert.EqualError(t, err, `listen on "unix:`+path+`": there is a file that is no socket; remove it or set LISTEN_ADDR`)
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "precious", string(content))
}

func TestHealthcheckFails(t *testing.T) {
	t.Parallel()
	healthcheck := func(listenAddr string) error {
		return run(t.Context(), []string{"healthcheck"}, environment("LISTEN_ADDR", listenAddr), io.Discard)
	}
	assert.ErrorContains(t, healthcheck("127.0.0.1:1"), "healthcheck: Get ")
	assert.ErrorContains(t, healthcheck("unix:/no/such.sock"), "healthcheck: Get ")
	_, usage := errors.AsType[*usageError](healthcheck("8080"))
	assert.True(t, usage)

	url := newDatabase(t)
	r := start(t, "DATABASE_URL", url)
	require.NoError(t, healthcheck(r.addr))
	unlock := holdLock(t, openTestStore(t, url), `LOCK TABLE schema_migrations`)
	assert.EqualError(t, healthcheck(r.addr), "healthcheck: 503 Service Unavailable: the database does not answer")
	unlock()
	assert.NoError(t, healthcheck(r.addr))
}

// inFlight asks for the page and returns when the visit waits in the database.
func (r *running) inFlight(t testing.TB, databaseURL string) (status chan int) {
	t.Helper()
	status = make(chan int, 1)
	go func() {
		answer, err := r.client.Get("http://footfall/")
		if err != nil {
			status <- 0
			return
		}
		answer.Body.Close()
		status <- answer.StatusCode
	}()
	db := openTestStore(t, databaseURL).reads
	eventually(t, "the visit waits", func() bool {
		return queryInt(t, db, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
	})
	return status
}

// Told to stop, the service is not ready at once, and counts on for the delay.
func TestStopDelay(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	r := start(t, "DATABASE_URL", url, "SHUTDOWN_DELAY", "3s")
	answer, _ := r.get(t, "/readyz")
	require.Equal(t, http.StatusOK, answer.StatusCode)
	assert.False(t, answer.Close)
	told := time.Now()
	r.stop()
	eventually(t, "shutting down", func() bool { return strings.Contains(r.lines.String(), `"msg":"shutting down"`) })
	answer, body := r.get(t, "/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, answer.StatusCode)
	assert.Equal(t, "shutting down\n", body)
	assert.True(t, answer.Close, "Connection: close")
	answer, _ = r.get(t, "/")
	assert.Equal(t, http.StatusOK, answer.StatusCode)
	assert.True(t, answer.Close, "Connection: close")
	require.NoError(t, <-r.ended)
	assert.GreaterOrEqual(t, time.Since(told), 3*time.Second)
	assert.Equal(t, int64(1), queryInt(t, openTestStore(t, url).reads, `SELECT visits FROM totals`))
}

// Without a delay the listener closes at once, and what is in flight is
// finished all the same.
func TestStopFinishesWhatIsInFlight(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	r := start(t, "DATABASE_URL", url)
	unlock := holdLock(t, openTestStore(t, url), `LOCK TABLE totals`)
	status := r.inFlight(t, url)
	r.stop()
	eventually(t, "no new connections", func() bool {
		conn, err := net.Dial("tcp", r.addr)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	unlock()
	assert.Equal(t, http.StatusOK, <-status)
	require.NoError(t, <-r.ended)
}

func TestStopGivesUp(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	r := start(t, "DATABASE_URL", url, "SHUTDOWN_TIMEOUT", "10ms")
	holdLock(t, openTestStore(t, url), `LOCK TABLE totals`)
	r.inFlight(t, url)
	r.stop()
	assert.EqualError(t, <-r.ended, "requests still in flight after 10ms: context deadline exceeded")
}

// SIGTERM ends the process with status 0; a second one ends it at once.
func TestSignals(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		cmd := command(t, nil, "DATABASE_URL", url, "LISTEN_ADDR", "127.0.0.1:0")
		r := startProcess(t, cmd)
		answer, _ := r.get(t, "/")
		require.Equal(t, http.StatusOK, answer.StatusCode)
		require.NoError(t, cmd.Process.Signal(signal))
		require.NoError(t, <-r.ended)
		assert.Contains(t, r.lines.String(), `"msg":"shutting down","cause":"`+signal.String()+` signal received"`)
		assert.Contains(t, r.lines.String(), `"msg":"stopped"`)

		cmd = command(t, nil, "DATABASE_URL", url, "LISTEN_ADDR", "127.0.0.1:0", "SHUTDOWN_DELAY", "1h")
		r = startProcess(t, cmd)
		require.NoError(t, cmd.Process.Signal(signal))
		eventually(t, "shutting down", func() bool { return strings.Contains(r.lines.String(), `"msg":"shutting down"`) })
		answer, _ = r.get(t, "/")
		assert.Equal(t, http.StatusOK, answer.StatusCode, "serves on")
		// The handler is taken off right after the first signal, beside the shutdown.
		var exit *exec.ExitError
		eventually(t, "ended by the second signal", func() bool {
			cmd.Process.Signal(signal) // in vain once it has ended
			select {
			case err := <-r.ended:
				return assert.ErrorAs(t, err, &exit)
			default:
				return false
			}
		})
		assert.Equal(t, signal, exit.Sys().(syscall.WaitStatus).Signal())
	}
}

func TestMigrateCommand(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	footfall := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), args, environment("DATABASE_URL", url), &out)
		return out.String(), err
	}
	out, err := footfall("migrate", "-status")
	require.NoError(t, err)
	assert.Regexp(t, `^0001_\w+\.sql +pending`, out)
	assert.NotContains(t, out, "applied")

	out, err = footfall("migrate")
	require.NoError(t, err)
	assert.Regexp(t, `^msg=migrated file=0001_\w+\.sql ms=\d+\n(?s:.*)the database is up to date\n$`, out)
	out, err = footfall("migrate")
	require.NoError(t, err)
	assert.Equal(t, "the database is up to date\n", out)

	out, err = footfall("migrate", "--status")
	require.NoError(t, err)
	assert.Regexp(t, `^0001_\w+\.sql +applied 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ`, out)
	assert.NotContains(t, out, "pending")

	db := openTestStore(t, url).reads
	execute(t, db, `INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, '9999_future.sql', '')`, len(ourMigrations())+1)
	out, err = footfall("migrate", "-status")
	require.NoError(t, err)
	assert.Regexp(t, `9999_future\.sql +applied \S+ +unknown to this program`, out)
	execute(t, db, `UPDATE schema_migrations SET checksum = 'another' WHERE version = 1`)
	_, err = footfall("migrate", "-status")
	assert.ErrorContains(t, err, "was changed after it was applied on ")
}

func TestVerifyCommand(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	r := start(t, "DATABASE_URL", url)
	r.get(t, "/")
	verify := func() (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), []string{"verify"}, environment("DATABASE_URL", url), &out)
		return out.String(), err
	}
	out, err := verify()
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^all visits = sum over visitors \+ forgotten +1 +1 +ok$`, out)
	execute(t, openTestStore(t, url).reads, `UPDATE totals SET visits = 7`)
	out, err = verify()
	assert.ErrorContains(t, err, "2 of 6 comparisons differ: restore from a backup, or look for what wrote to the tables beside footfall")
	assert.Regexp(t, `(?m)^all visits = sum over visitors \+ forgotten +7 +1 +DIFFERENT$`, out)
}

// send writes raw bytes to the service and returns the status line of the answer.
func (r *running) send(t testing.TB, text string) string {
	t.Helper()
	conn, err := net.Dial("tcp", r.addr)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
	_, err = io.WriteString(conn, text)
	require.NoError(t, err)
	line, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line)
}

func TestRawRequests(t *testing.T) {
	t.Parallel()
	r := start(t, "DATABASE_URL", newDatabase(t), "LOG_LEVEL", "debug")
	header := func(bytes int) string {
		return "GET /healthz HTTP/1.1\r\nHost: footfall\r\nX-Long: " + strings.Repeat("x", bytes) + "\r\n\r\n"
	}
	for _, tt := range []struct{ name, text, want string }{
		{"plain", "GET /healthz HTTP/1.1\r\nHost: footfall\r\n\r\n", "HTTP/1.1 200 OK"},
		{"HTTP/1.0", "GET /healthz HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK"},
		{"no request line", "hello\r\n\r\n", "HTTP/1.1 400 Bad Request"},
		{"no path", "GET HTTP/1.1\r\nHost: footfall\r\n\r\n", "HTTP/1.1 400 Bad Request"},
		{"unknown protocol", "GET / GOPHER/1.0\r\n\r\n", "HTTP/1.1 400 Bad Request"},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request: missing required Host header"},
		{"space in a header's name", "GET / HTTP/1.1\r\nHost: footfall\r\nX Y: z\r\n\r\n", "HTTP/1.1 400 Bad Request: invalid header name"},
		{"bytes of TLS", "\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", "HTTP/1.1 400 Bad Request"},
		{"15 KiB of header", header(15 << 10), "HTTP/1.1 200 OK"},
		{"over 16 KiB of header", header(16 << 10), "HTTP/1.1 431 Request Header Fields Too Large"},
		{"a body that never comes", "POST / HTTP/1.1\r\nHost: footfall\r\nContent-Length: 1000000000\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.want, r.send(t, tt.text))
		})
	}
	_, port, err := net.SplitHostPort(r.addr)
	require.NoError(t, err)
	addresses := regexp.MustCompile(`127\.0\.0\.1:(\d+)`)
	for _, match := range addresses.FindAllStringSubmatch(r.lines.String(), -1) {
		assert.Equal(t, port, match[1], "only our own address is logged")
	}
}

// A client that dawdles with its request's header loses its connection.
func TestSlowClient(t *testing.T) {
	t.Parallel()
	r := start(t, "DATABASE_URL", newDatabase(t))
	conn, err := net.Dial("tcp", r.addr)
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: foot")
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
	_, err = io.Copy(io.Discard, conn)
	assert.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the service closes the connection")
}

// net/http's own messages hold addresses: only that there was one is kept.
func TestServersLogHoldsNoAddress(t *testing.T) {
	t.Parallel()
	log, lines := newLog(t)
	fmt.Fprintln(serverLog{log}, "http: TLS handshake error from 192.0.2.1:1")
	assert.Contains(t, lines.String(), "connection failed")
	assert.NotContains(t, lines.String(), "192.0.2.1")
}
