package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

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

// Without a database the service answers from its start, and counts as soon as
// there is one: so after a reboot nothing has to be started again.
func TestServeBeforeTheDatabase(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.end(t, syscall.SIGINT)
	r := startUnready(t, "DATABASE_URL", c.url("footfall"))
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
	expect("/readyz", http.StatusOK, "ready")
	expect("/", http.StatusOK, "You have visited this page 1 time.")
	r.stop()
	require.NoError(t, <-r.ended)
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
	s := openTestStore(t, c.url("footfall"))
	prepared(t, s)
	execute(t, s.reads, `
		REVOKE CREATE ON SCHEMA public FROM PUBLIC;
		CREATE ROLE counting LOGIN;
		GRANT SELECT ON ALL TABLES IN SCHEMA public TO counting;
		GRANT INSERT, UPDATE ON visitors, days, totals TO counting;
		GRANT INSERT, UPDATE, DELETE ON writers TO counting`)
	r := start(t, "DATABASE_URL", strings.Replace(c.url("footfall"), "footfall@", "counting@", 1))
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

// Of several that start at once on a stale socket one serves, the others say so.
func TestListenOnASocketAtOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "web.sock")
	for range 50 {
		stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		require.NoError(t, err)
		stale.SetUnlinkOnClose(false)
		require.NoError(t, stale.Close())
		var all sync.WaitGroup
		var listeners [8]net.Listener
		var errs [8]error
		for i := range listeners {
			all.Go(func() { listeners[i], errs[i] = listen(t.Context(), "unix:"+path) })
		}
		all.Wait()
		serving := 0
		for i, ln := range listeners {
			if ln == nil {
				assert.ErrorContains(t, errs[i], "another program listens there")
				continue
			}
			serving++
			conn, err := net.Dial("unix", path)
			if assert.NoError(t, err) {
				conn.Close()
			}
			defer ln.Close()
		}
		require.Equal(t, 1, serving)
		require.NoError(t, os.Remove(path))
	}
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
