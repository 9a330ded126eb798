package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Without a database the service answers from its start, and counts as soon as
// there is one: so after a reboot nothing has to be started again.
func TestServeBeforeTheDatabase(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.end(t, syscall.SIGINT)
	r := startUnready(t, "DATABASE_URL", c.URL("footfall"))
	expect := func(path string, status int, text string) {
		t.Helper()
		answer, body := r.get(t, path)
		assert.Equal(t, status, answer.StatusCode, path)
		assert.Contains(t, pageText(body), text, path)
	}
	r.awaitLine(t, regexp.MustCompile(`"level":"WARN","msg":"not ready yet","err":"DATABASE_URL: failed to connect to .*no such file or directory"`).MatchString)
	expect("/healthz", http.StatusOK, "ok")
	expect("/readyz", http.StatusServiceUnavailable, "starting")
	expect("/", http.StatusServiceUnavailable, notLost)
	expect("/api/stats", http.StatusServiceUnavailable, "the database does not answer")
	answer, _ := r.get(t, "/", "User-Agent", "Googlebot/2.1")
	assert.Equal(t, http.StatusServiceUnavailable, answer.StatusCode)
	assert.Equal(t, 1, strings.Count(r.lines.String(), "not ready yet"), "the same cause is logged once")
	c.begin(t)
	r.awaitReady(t)
	eventually(t, "readiness", func() bool {
		answer, _ := r.get(t, "/readyz")
		return answer.StatusCode == http.StatusOK
	})
	expect("/", http.StatusOK, "You have visited this page 1 time.")
	r.stop()
	require.NoError(t, <-r.ended)
}

// What keeps a start waiting has a deadline, and is logged again every minute.
func TestStartBehindALock(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	holder := openTestStore(t, url)
	prepared(t, holder)
	release := holdLock(t, holder, `LOCK TABLE settings`)
	cfg, err := loadConfig(environment("DATABASE_URL", url))
	require.NoError(t, err)
	log, lines := newLog(t)
	s := newServer(cfg, log)
	t.Cleanup(func() { assert.NoError(t, s.store.close()) })
	clock := time.Now()
	s.now = func() time.Time { clock = clock.Add(notReadyEvery / 2); return clock }
	ended := make(chan error, 1)
	go func() { ended <- s.prepare(t.Context()) }()
	eventually(t, "the cause is logged again", func() bool {
		return strings.Count(lines.String(), `"msg":"not ready yet","err":"read the visitor key: timeout: context deadline exceeded"`) == 2
	})
	release()
	require.NoError(t, <-ended)
	closeRecorder(t, s.counter.Load().recorder)
}

// A proxy swallows the first query and leaves the connection open.
func TestStartBehindADeafProxy(t *testing.T) {
	t.Parallel()
	cutter, through := newCutter(t, newDatabase(t))
	cutter.swallow()
	r := startUnready(t, "DATABASE_URL", through)
	r.awaitLine(t, regexp.MustCompile(`"msg":"not ready yet"`).MatchString)
	r.awaitReady(t)
	answer, _ := r.get(t, "/")
	assert.Equal(t, http.StatusOK, answer.StatusCode)
}

// While another process migrates, the service answers and waits.
func TestServeWhileAnotherMigrates(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	release := holdLock(t, openTestStore(t, url), takeMigrationLock)
	r := startUnready(t, "DATABASE_URL", url)
	answer, _ := r.get(t, "/healthz")
	assert.Equal(t, http.StatusOK, answer.StatusCode)
	_, body := r.get(t, "/readyz")
	assert.Equal(t, "starting\n", body)
	release()
	r.awaitReady(t)
	// Told to stop while it waits, it stops.
	url = newDatabase(t)
	holdLock(t, openTestStore(t, url), takeMigrationLock)
	r = startUnready(t, "DATABASE_URL", url)
	r.stop()
	require.NoError(t, <-r.ended)
	assert.Contains(t, r.lines.String(), `"msg":"stopped"`)
}

// A request that comes a moment before the database is prepared waits: where a
// service is killed and started again, its clients get no error.
func TestServeAnswersFirstRequestsLater(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := openTestStore(t, url)
	prepared(t, s)
	release := holdLock(t, s, `LOCK TABLE schema_migrations`)
	r := startUnready(t, "DATABASE_URL", url)
	request, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) { release() },
	}), "GET", "http://footfall/", nil)
	require.NoError(t, err)
	answer, err := r.client.Do(request)
	require.NoError(t, err)
	answer.Body.Close()
	assert.Equal(t, http.StatusOK, answer.StatusCode)
}

// What does not get better by itself ends the program at once.
func TestServeRefuses(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := openTestStore(t, url)
	prepared(t, s)
	serve := func(pairs ...string) error {
		return run(t.Context(), []string{"serve"}, environment(append(pairs, "DATABASE_URL", url, "LISTEN_ADDR", "127.0.0.1:0")...), io.Discard)
	}
	assert.ErrorContains(t, serve("VISITOR_KEY", strings.Repeat("x", 32)), "set the earlier key again")
	execute(t, s.reads, `UPDATE schema_migrations SET checksum = 'another'`)
	assert.ErrorContains(t, serve(), "was changed after it was applied on ")
}

// A role that may not change the schema can serve a database that needs no change.
func TestServeWithoutRightsOnTheSchema(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	s := openTestStore(t, c.URL("footfall"))
	prepared(t, s)
	execute(t, s.reads, `
		REVOKE CREATE ON SCHEMA public FROM PUBLIC;
		CREATE ROLE counting LOGIN;
		GRANT SELECT ON ALL TABLES IN SCHEMA public TO counting;
		GRANT INSERT, UPDATE ON visitors, days, totals TO counting;
		GRANT INSERT, UPDATE, DELETE ON writers TO counting`)
	r := start(t, "DATABASE_URL", strings.Replace(c.URL("footfall"), "footfall@", "counting@", 1))
	_, body := r.get(t, "/")
	assert.Contains(t, pageText(body), "You have visited this page 1 time.")
}

// Only a socket whose process is gone is stale: this one's process is there,
// and takes no more connections at the moment.
func TestListenOnABusySocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "web.sock")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer syscall.Close(fd)
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}))
	require.NoError(t, syscall.Listen(fd, 0))
	for {
		conn, err := net.Dial("unix", path)
		if err != nil {
			require.ErrorIs(t, err, syscall.EAGAIN, "its queue is full")
			break
		}
		defer conn.Close()
	}
	_, err = listen(t.Context(), "unix:"+path)
	assert.EqualError(t, err, `listen on "unix:`+path+`": another program listens there; stop it or set LISTEN_ADDR`)
	assert.FileExists(t, path)
}

// A socket that answers in another way than a dead one is not removed.
func TestListenOnAnotherKindOfSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "web.sock")
	datagrams, err := net.ListenPacket("unixgram", path)
	require.NoError(t, err)
	defer datagrams.Close()
	_, err = listen(t.Context(), "unix:"+path)
	assert.ErrorContains(t, err, `listen on "unix:`+path+`": find out whether a program listens there: `)
	assert.FileExists(t, path)
}

// The operator sees why connections are not accepted.
func TestTooManyOpenFiles(t *testing.T) {
	t.Parallel()
	cmd := command(t, nil, "DATABASE_URL", newDatabase(t), "LISTEN_ADDR", "127.0.0.1:0")
	cmd.Args = []string{"bash", "-c", `ulimit -n 24 && exec "$0"`, cmd.Path}
	bash, err := exec.LookPath("bash")
	require.NoError(t, err)
	cmd.Path = bash
	r := startProcess(t, cmd)
	for range 24 {
		conn, err := net.Dial("tcp", r.addr)
		require.NoError(t, err)
		defer conn.Close()
	}
	r.awaitLine(t, regexp.MustCompile(`"level":"WARN","msg":"connection not accepted","err":"accept tcp 127\.0\.0\.1:\d+: accept4: too many open files; retrying in `).MatchString)
}

func TestServe(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	separator := "?"
	if strings.Contains(url, "?") {
		separator = "&"
	}
	r := start(t, "DATABASE_URL", url+separator+"connection_limit=5")
	assert.Contains(t, r.lines.String(), `"level":"WARN","msg":"parameter of DATABASE_URL ignored: it is for another driver","parameter":"connection_limit"`)
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

	// A file that is not a socket is not ours to remove.
	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	err = run(t.Context(), []string{"serve"}, environment(settings...), io.Discard)
	assert.EqualError(t, err, `listen on "unix:`+path+`": a file that is not a socket is in the way; remove it or set LISTEN_ADDR`)
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "precious", string(content))
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
	var answer *http.Response
	eventually(t, "readiness", func() bool {
		answer, _ = r.get(t, "/readyz")
		return answer.StatusCode == http.StatusOK
	})
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

// Browsers and balancers open connections before they need them.
func TestStopBesideUnusedConnections(t *testing.T) {
	t.Parallel()
	r := start(t, "DATABASE_URL", newDatabase(t))
	unused, err := net.Dial("tcp", r.addr)
	require.NoError(t, err)
	defer unused.Close()
	r.get(t, "/healthz") // by then it is accepted
	begin := time.Now()
	r.stop()
	require.NoError(t, <-r.ended)
	assert.Less(t, time.Since(begin), 4*time.Second, "net/http's Shutdown alone waits 5 s")
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

// unread starts a service whose log goes into a pipe that nobody reads yet, and
// logs every request. ended is what Wait says.
func unread(t testing.TB) (r *running, log *os.File) {
	t.Helper()
	log, in, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { log.Close() })
	socket := filepath.Join(t.TempDir(), "web.sock")
	cmd := command(t, nil, "DATABASE_URL", newDatabase(t), "LISTEN_ADDR", "unix:"+socket, "LOG_LEVEL", "debug")
	cmd.Stdout, cmd.Stderr = in, os.Stderr
	require.NoError(t, cmd.Start())
	in.Close()
	r = &running{
		addr: socket, ended: make(chan error, 1), stop: func() { cmd.Process.Signal(syscall.SIGTERM) },
		client: &http.Client{Transport: &http.Transport{DialContext: dial(socket)}, Timeout: 5 * time.Second},
	}
	go func() { r.ended <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	eventually(t, "the service is ready", func() bool {
		answer, err := r.client.Get("http://footfall/readyz")
		if err == nil {
			answer.Body.Close()
		}
		return err == nil && answer.StatusCode == http.StatusOK
	})
	return r, log
}

// drown asks until lines of the log are dropped.
func (r *running) drown(t testing.TB) {
	t.Helper()
	eventually(t, "lines are dropped", func() bool {
		for range 100 {
			r.get(t, "/healthz")
		}
		return r.droppedLines(t) > 0
	})
}

func (r *running) droppedLines(t testing.TB) float64 {
	t.Helper()
	_, text := r.get(t, "/metrics")
	n, err := strconv.ParseFloat(metric(text, "footfall_log_lines_dropped_total"), 64)
	require.NoError(t, err)
	return n
}

// No answer waits for a reader of the log. What did not fit is counted, and
// said when there is a reader; the end of the log comes with the service's.
func TestLogThatNobodyReads(t *testing.T) {
	t.Parallel()
	r, log := unread(t)
	r.drown(t)
	for range 50 {
		for path, want := range map[string]int{"/": 200, "/no-such-page": 404, "/badge.svg": 200, "/readyz": 200} {
			answer, _ := r.get(t, path) // in 5 s, or the client fails
			require.Equal(t, want, answer.StatusCode)
		}
	}
	dropped := r.droppedLines(t)
	assert.Greater(t, dropped, 200.0)
	// Now it is read, and the line about it comes with the next.
	said := 0.0
	var last string
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		var line struct {
			Msg   string
			Lines float64
		}
		require.NoError(t, json.Unmarshal(lines.Bytes(), &line), "no line is broken: %s", lines.Text())
		if last = line.Msg; line.Lines > 0 {
			said += line.Lines
			assert.Equal(t, "log lines dropped: nobody read them", line.Msg)
			r.stop()
		}
	}
	assert.GreaterOrEqual(t, said, dropped)
	assert.Equal(t, "stopped", last)
	assert.NoError(t, <-r.ended)
}

// Without a reader the service ends all the same when it is told to, and only then.
func TestLogWithoutReader(t *testing.T) {
	t.Parallel()
	r, _ := unread(t)
	r.drown(t)
	r.stop()
	assert.NoError(t, <-r.ended)

	r, log := unread(t)
	require.NoError(t, log.Close()) // as head does when it has enough
	r.drown(t)
	answer, _ := r.get(t, "/")
	assert.Equal(t, http.StatusOK, answer.StatusCode)
	r.stop()
	assert.NoError(t, <-r.ended)
}
