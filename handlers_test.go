package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"footfall/internal/postgres"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPage(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t), "USER_NAME", "Ada <b>", "USER_URL", "https://example.org/?a=1&b=2")
	steps := []struct {
		headers  []string
		sentence string
		totals   []string
		how      string
	}{
		{nil, "You have visited this page 1 time.", []string{"1 visitor ", "1 visit ", "1 visit today"}, "You were recognised by your IP address."},
		{nil, "You have visited this page 2 times.", []string{"1 visitor ", "2 visits ", "2 visits today"}, "You were recognised by your IP address."},
		{[]string{"Peer", "192.0.2.2:1"}, "You have visited this page 1 time.", []string{"2 visitors ", "3 visits "}, "You were recognised by your IP address."},
		{[]string{"Peer", "127.0.0.1:1", "X-Forwarded-For", "192.0.2.1"}, "You have visited this page 3 times.", []string{"2 visitors ", "4 visits "}, "You were recognised by your IP address, forwarded by a trusted proxy."},
		{[]string{"X-Forwarded-For", "1.2.3.4"}, "You have visited this page 4 times.", []string{"2 visitors ", "5 visits "}, "You were recognised by your IP address."},
	}
	for _, step := range steps {
		w := s.ask("GET", "/", step.headers...)
		require.Equal(t, http.StatusOK, w.Code)
		assert.Equal(t, "text/html; charset=utf-8", w.Header().Get("Content-Type"))
		assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
		text := pageText(w.Body.String())
		for _, want := range append(step.totals, step.sentence, step.how, "This visit was counted.") {
			assert.Contains(t, text, want)
		}
	}
	w := s.ask("GET", "/")
	text := pageText(w.Body.String())
	assert.Contains(t, text, "footfall "+s.build.Version+", deployed by Ada <b>.")
	assert.Contains(t, text, "Counting since "+time.Now().UTC().Format("2 January 2006")+" in PostgreSQL ")
	assert.Contains(t, w.Body.String(), `href="https://example.org/?a=1&amp;b=2"`)
	assert.NotContains(t, w.Body.String(), "Ada <b>", "escaped")
	assert.Contains(t, w.Body.String(), "<svg")
	assert.Contains(t, w.Body.String(), `lang="en"`)
	// Of what the CSP forbids, there is nothing on the page.
	assert.NotRegexp(t, `(?i)<script|<style|\sstyle=|\son[a-z]+=|javascript:`, w.Body.String())
	requireVerified(t, s.store)
}

// 30 days, a number with commas, and no name.
func TestPageWithHistory(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	execute(t, s.store.reads, `
		INSERT INTO days (day, visits, visitors, new_visitors)
		SELECT (now() AT TIME ZONE 'UTC')::date - n, 1000 * n, n, 1
		FROM generate_series(1, 40) AS n`)
	execute(t, s.store.reads, `UPDATE totals SET visits = 820000, visitors = 123455`)
	w := s.ask("GET", "/")
	require.Equal(t, http.StatusOK, w.Code)
	text := pageText(w.Body.String())
	assert.Contains(t, text, "820,001 visits")
	assert.Contains(t, text, "123,456 visitors")
	assert.Contains(t, w.Body.String(), `aria-label="Bar chart: 435,001 visits`, "of the last 30 days: today and 29 before it")
	assert.Contains(t, text, "29,000", "the busiest of them")
	assert.NotContains(t, text, "30,000", "31 days ago")
	assert.NotContains(t, text, "deployed by")
}

func TestPageDoesNotCount(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t), "IGNORED_NETWORKS", "198.51.100.0/24, 2001:db8:1::/48")
	require.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
	const never, once = "You have not been counted here yet.", "You have visited this page 1 time."
	for name, tt := range map[string]struct {
		headers []string
		want    []string
	}{
		"bot":       {[]string{"User-Agent", "Googlebot/2.1", "Peer", "192.0.2.9:1"}, []string{never, "This visit was not counted: your browser identifies itself as a program"}},
		"known bot": {[]string{"User-Agent", "Googlebot/2.1"}, []string{once, "This visit was not counted: your browser identifies itself as a program"}},
		"embedded":  {[]string{"Sec-Fetch-Dest", "image"}, []string{once, "This visit was not counted: another page embeds this one."}},
		"ignored":   {[]string{"Peer", "198.51.100.7:1"}, []string{never, "This visit was not counted: visits from your network are excluded."}},
		"ignored, forwarded": {[]string{"Peer", "127.0.0.1:1", "X-Forwarded-For", "2001:db8:1:2::3"},
			[]string{never, "This visit was not counted: visits from your network are excluded."}},
		"nobody": {[]string{"Peer", "@"}, []string{never, "This visit was not counted. You could not be recognised: the proxy in front of this page did not pass on your IP address."}},
	} {
		t.Run(name, func(t *testing.T) {
			w := s.ask("GET", "/", tt.headers...)
			assert.Equal(t, http.StatusOK, w.Code)
			for _, want := range tt.want {
				assert.Contains(t, pageText(w.Body.String()), want)
			}
			assert.Equal(t, int64(1), queryInt(t, s.store.reads, `SELECT visits FROM totals`))
			assert.Equal(t, int64(1), queryInt(t, s.store.reads, `SELECT count(*) FROM visitors`))
		})
	}
}

// What a browser asks for ahead is refused before the database is asked: it must
// ask again when the person comes, and no alert may take the refusal for an error.
func TestSpeculativeLoadIsRefused(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := newTestServer(t, url)
	unlock := holdLock(t, openTestStore(t, url), `LOCK TABLE totals, visitors, days`)
	for _, purpose := range []string{"prefetch", "prefetch;prerender", "prefetch;anonymous-client-ip"} {
		w := s.ask("GET", "/", "Sec-Purpose", purpose, "Accept", "text/html")
		assert.Equal(t, http.StatusForbidden, w.Code)
		assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
		assert.Empty(t, w.Body)
	}
	unlock()
	assert.Zero(t, queryInt(t, s.store.reads, `SELECT visits FROM totals`))
	metrics := s.ask("GET", "/metrics").Body.String()
	assert.Equal(t, "3", metric(metrics, `footfall_visits_total{result="prefetch"}`))
	assert.NotRegexp(t, `status="5`, metrics)
	assert.NotRegexp(t, `"level":"(WARN|ERROR)"`, s.lines.String())
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t), "USER_URL", "https://example.org/")
	s.awaitReady(t)
	listener := httptest.NewServer(s.handler)
	defer listener.Close()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	const plain, jsonType, minute = "text/plain; charset=utf-8", "application/json", "public, max-age=60"
	tests := []struct {
		method, path string
		status       int
		contentType  string
		cache        string
	}{
		{"GET", "/", 200, "text/html; charset=utf-8", "no-store"},
		{"GET", "/?utm_source=x", 200, "text/html; charset=utf-8", "no-store"},
		{"HEAD", "/", 200, "text/html; charset=utf-8", "no-store"},
		{"GET", "/version", 200, jsonType, "no-store"},
		{"GET", "/healthz", 200, plain, "no-store"},
		{"HEAD", "/healthz", 200, plain, "no-store"},
		{"GET", "/readyz", 200, plain, "no-store"},
		{"GET", "/api/stats", 200, jsonType, "no-store"},
		{"GET", "/api/stats.csv", 200, "text/csv; charset=utf-8", minute},
		{"GET", "/badge.svg", 200, "image/svg+xml", minute},
		{"GET", "/badge.svg?show=visits&v=2", 200, "image/svg+xml", minute},
		{"GET", "/badge.svg?show=today", 200, "image/svg+xml", minute},
		{"HEAD", "/badge.svg", 200, "image/svg+xml", minute},
		{"GET", "/badge.svg?show=Visits", 400, plain, "no-store"},
		{"GET", "/badge.svg?show=%zz", 400, plain, "no-store"},
		{"GET", "/badge.svg?show=visits;today", 400, plain, "no-store"},
		{"GET", "/badge.json", 200, jsonType, minute},
		{"GET", "/badge.json?show=all", 400, plain, "no-store"},
		{"GET", "/chart.svg", 200, "image/svg+xml", minute},
		{"GET", "/card.png", 200, "image/png", minute},
		{"GET", "/days", 200, "text/html; charset=utf-8", "no-store"},
		{"GET", "/robots.txt", 200, plain, minute},
		{"GET", "/favicon.ico", 200, "image/vnd.microsoft.icon", minute},
		{"GET", "/.well-known/security.txt", 200, plain, minute},
		{"GET", "/metrics", 200, "text/plain; version=0.0.4; charset=utf-8", "no-store"},
		{"GET", assetPath("style.css"), 200, "text/css; charset=utf-8", "public, max-age=31536000, immutable"},
		{"GET", assetPath("favicon.svg"), 200, "image/svg+xml", "public, max-age=31536000, immutable"},
		{"GET", "/assets/style.css", 404, plain, "no-store"},
		{"GET", "/assets/", 404, plain, "no-store"},
		{"GET", "/assets/../main.go", 404, plain, "no-store"},
		{"GET", "/index.html", 404, plain, "no-store"},
		{"GET", "/healthz/", 404, plain, "no-store"},
		{"GET", "/api/", 404, plain, "no-store"},
		{"POST", "/nowhere", 404, plain, "no-store"},
		{"POST", "/", 405, plain, "no-store"},
		{"DELETE", "/", 405, plain, "no-store"},
		{"OPTIONS", "/", 405, plain, "no-store"},
		{"MADEUP", "/version", 405, plain, "no-store"},
		{"PUT", "/healthz", 405, plain, "no-store"},
		{"POST", "/metrics", 405, plain, "no-store"},
		{"POST", "/api/stats", 405, plain, "no-store"},
		{"POST", "/favicon.ico", 405, plain, "no-store"},
		{"POST", assetPath("style.css"), 405, plain, "no-store"},
	}
	for _, tt := range tests {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), tt.method, listener.URL, strings.NewReader("a body that is not read"))
			require.NoError(t, err)
			r.URL.Path, r.URL.RawQuery, _ = strings.Cut(tt.path, "?")
			answer, err := client.Do(r)
			require.NoError(t, err)
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			require.NoError(t, err)
			if tt.path == "/assets/../main.go" { // the mux cleans the path first
				assert.Contains(t, []int{http.StatusMovedPermanently, http.StatusTemporaryRedirect}, answer.StatusCode)
				assert.Equal(t, "/main.go", answer.Header.Get("Location"))
			} else {
				require.Equal(t, tt.status, answer.StatusCode)
				assert.Equal(t, tt.contentType, answer.Header.Get("Content-Type"))
				assert.Equal(t, tt.cache, answer.Header.Get("Cache-Control"))
			}
			if tt.status == http.StatusMethodNotAllowed {
				assert.Equal(t, "GET, HEAD", answer.Header.Get("Allow"))
			}
			if tt.method == http.MethodHead {
				assert.Empty(t, body)
				// A GET of the page would be counted and see other words.
				assert.Equal(t, tt.path != "/", answer.ContentLength > 0)
			}
			assert.Equal(t, "nosniff", answer.Header.Get("X-Content-Type-Options"))
			assert.Equal(t, "no-referrer", answer.Header.Get("Referrer-Policy"))
			assert.NotEmpty(t, answer.Header.Get("Permissions-Policy"))
			csp := answer.Header.Get("Content-Security-Policy")
			assert.Contains(t, csp, "default-src 'none'")
			assert.Contains(t, csp, "frame-ancestors 'none'")
			assert.NotContains(t, csp, "unsafe")
		})
	}
	assert.Equal(t, int64(2), queryInt(t, s.store.reads, `SELECT visits FROM totals`), "only GET / counts")
}

// The small things are the same for curl and for GitHub's image proxy, through
// a real connection, and neither counts. The browser's turn is in e2e.
func TestSmallThingsByCurl(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	r := start(t, "DATABASE_URL", url, "USER_URL", "mailto:ann@example.org")
	for _, path := range []string{
		"/robots.txt", "/favicon.ico", "/.well-known/security.txt", "/api/stats.csv", "/chart.svg", "/card.png",
		"/badge.json", "/badge.svg", "/badge.svg?show=visits", "/badge.svg?show=today",
	} {
		var bodies [2]string
		for i, agent := range []string{"curl/8.5.0", "github-camo (876de43e)"} {
			out, err := exec.CommandContext(t.Context(), "curl", "-sSfi", "-A", agent, "http://"+r.addr+path).CombinedOutput()
			require.NoError(t, err, "%s: %s", path, out)
			header, body, _ := strings.Cut(string(out), "\r\n\r\n")
			assert.Contains(t, header, "Cache-Control: public, max-age=60\r\n", path)
			assert.NotEmpty(t, body, path)
			bodies[i] = body
		}
		assert.Equal(t, bodies[0], bodies[1], path)
	}
	assert.Zero(t, queryInt(t, openTestStore(t, url).reads, `SELECT visits FROM totals`))
}

func TestReadyz(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := newTestServer(t, url)
	newest := len(ourMigrations())
	ask := func(status int, reason string) { // awaited: a busy machine needs more than the second of a probe
		t.Helper()
		var w *httptest.ResponseRecorder
		eventually(t, reason, func() bool {
			w = s.ask("GET", "/readyz")
			return w.Code == status && strings.TrimSpace(w.Body.String()) == reason
		})
		if status == http.StatusServiceUnavailable {
			assert.Equal(t, retryAfter, w.Header().Get("Retry-After"))
		}
	}
	ask(200, "ready")
	execute(t, s.store.reads, `INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, 'newer', '')`, newest+1)
	ask(200, "ready")
	execute(t, s.store.reads, `DELETE FROM schema_migrations WHERE version >= $1`, newest)
	ask(503, fmt.Sprintf("the schema is at version %d, this program needs %d: run footfall migrate", newest-1, newest))
	execute(t, s.store.reads, `INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, 'again', '')`, newest)
	ask(200, "ready")

	// A locked table: the answer comes all the same.
	unlock := holdLock(t, openTestStore(t, url), `LOCK TABLE schema_migrations`)
	ask(503, "the database does not answer")
	unlock()
	ask(200, "ready")

	alterDatabase(t, s.store, "default_transaction_read_only = on")
	s.store.probes.SetMaxIdleConns(0) // the next one is new
	ask(503, "the database is read-only")
	s.store.probes.SetMaxIdleConns(1)
	execute(t, s.store.reads, `SET default_transaction_read_only = off`)
	alterDatabase(t, s.store, "default_transaction_read_only = off")
	ask(200, "ready")

	s.draining.Store(true)
	ask(503, "shutting down")
	assert.Equal(t, "close", s.ask("GET", "/healthz").Header().Get("Connection"))
	assert.Equal(t, http.StatusOK, s.ask("GET", "/").Code, "still served")
}

// Ready means that a visit would be counted, not that the database answers.
func TestReadyzWhereVisitsFail(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	s.awaitReady(t)
	require.Equal(t, int64(0), queryInt(t, s.store.reads, `SELECT visits FROM totals`), "a try counts nothing")
	execute(t, s.store.reads, `ALTER TABLE visitors ADD CONSTRAINT full_disk CHECK (visits < 0) NOT VALID`)
	require.Equal(t, http.StatusServiceUnavailable, s.ask("GET", "/readyz").Code, "before the first visit")
	execute(t, s.store.reads, `ALTER TABLE visitors DROP CONSTRAINT full_disk`)
	require.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
	execute(t, s.store.reads, `ALTER TABLE visitors ADD CONSTRAINT full_disk CHECK (visits < 0) NOT VALID`)
	s.awaitReady(t) // the last visit was counted
	require.Equal(t, http.StatusServiceUnavailable, s.ask("GET", "/").Code)
	for range 2 {
		w := s.ask("GET", "/readyz")
		assert.Equal(t, http.StatusServiceUnavailable, w.Code)
		assert.Equal(t, "the database takes no visits\n", w.Body.String())
	}
	execute(t, s.store.reads, `ALTER TABLE visitors DROP CONSTRAINT full_disk`)
	s.awaitReady(t) // a try succeeds
	assert.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
	assert.Equal(t, int64(1), queryInt(t, s.store.reads, `SELECT count(*) FROM visitors`), "a try leaves nothing")
	assert.Equal(t, int64(2), queryInt(t, s.store.reads, `SELECT visits FROM totals`))
	requireVerified(t, s.store)
}

// A database that is not as we left it: nothing of a visit is stored, readiness
// says why, and it counts again once a person has put it right.
func TestNothingIsCountedInAnotherDatabase(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ breaks, mends, reason string }{
		"another key":   {`UPDATE settings SET value = 'of another' WHERE name = 'visitor_key_fingerprint'`, `UPDATE settings SET value = $1 WHERE name = 'visitor_key_fingerprint'`, errOtherKey.Error()},
		"no settings":   {`DELETE FROM settings`, `INSERT INTO settings VALUES ('visitor_key_fingerprint', $1)`, errOtherKey.Error()},
		"no totals":     {`CREATE TABLE kept AS SELECT * FROM totals; DELETE FROM totals`, `INSERT INTO totals SELECT * FROM kept WHERE $1 <> ''`, errNoTotals.Error()},
		"no tables":     {`ALTER TABLE visitors RENAME TO v; ALTER TABLE settings RENAME TO s`, `DO 'BEGIN ALTER TABLE v RENAME TO visitors; ALTER TABLE s RENAME TO settings; END'`, errNoCount.Error()},
		"another dump":  {`UPDATE settings SET value = 'of another' WHERE name = 'visitor_key_fingerprint'; TRUNCATE writers`, `UPDATE settings SET value = $1 WHERE name = 'visitor_key_fingerprint'`, errOtherKey.Error()},
		"an older dump": {`TRUNCATE writers, visitors, days; UPDATE totals SET visits = 0, visitors = 0`, ``, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t, newDatabase(t))
			require.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
			execute(t, s.store.reads, tt.breaks)
			if tt.reason != "" {
				for range 3 {
					assert.Equal(t, tt.reason+"\n", s.ask("GET", "/readyz").Body.String())
					s.requireUnavailable(t, notLost)
				}
				for _, table := range []string{"visitors", "v"} {
					if tableExists(t, s.store.reads, table) {
						assert.Equal(t, int64(1), queryInt(t, s.store.reads, `SELECT sum(visits) FROM `+table))
					}
				}
				assert.LessOrEqual(t, queryInt(t, s.store.reads, `SELECT count(*) FROM writers`), int64(1), "a refused visit leaves no row")
				if strings.Contains(tt.mends, "$1") {
					execute(t, s.store.reads, tt.mends, s.store.fingerprint)
				} else {
					execute(t, s.store.reads, tt.mends)
				}
				eventually(t, "ready again", func() bool { return s.ask("GET", "/readyz").Code == http.StatusOK })
			}
			require.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
			requireVerified(t, s.store)
		})
	}
}

// An answer that the program cannot read is no broken connection: nothing is
// sent again, the log has the cause, and readiness sees it as a visit does.
func TestAnswerNotUnderstood(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	require.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
	execute(t, s.store.reads, `ALTER TABLE totals ALTER COLUMN since TYPE text`)
	s.store.past = past{} // the next batch reads it
	require.Equal(t, http.StatusServiceUnavailable, s.ask("GET", "/").Code)
	assert.Regexp(t, `"msg":"visits not confirmed","visits":1,"err":"commit batch: .*name \\"since\\"`, s.lines.String())
	assert.Equal(t, "the database takes no visits\n", s.ask("GET", "/readyz").Body.String())
	s.metrics.mu.Lock()
	defer s.metrics.mu.Unlock()
	assert.LessOrEqual(t, s.metrics.batches["retried"], uint64(1), "once, for the prepared statement that no longer fits")
}

// A crowd of readers cannot make the service look broken.
func TestReadyzInACrowd(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	for range postgres.MaxConns {
		conn, err := s.store.reads.Conn(t.Context())
		require.NoError(t, err)
		defer conn.Close()
	}
	require.Equal(t, http.StatusServiceUnavailable, s.ask("GET", "/badge.json").Code)
	s.awaitReady(t)
}

// A client that closes its sending side still waits for its answer, and one that
// leaves is no fault of the database: neither costs a connection to it
// (golang/go#18527, stellar/go-stellar-sdk#4098).
func TestClientsThatLeave(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	r := start(t, "DATABASE_URL", url)
	r.get(t, "/") // readiness then needs no try of a visit
	paths := []string{"/", "/readyz", "/api/stats", "/api/stats.csv", "/badge.svg", "/badge.json", "/chart.svg"}
	send := func(path string) *net.TCPConn {
		conn, err := net.Dial("tcp", r.addr)
		require.NoError(t, err)
		_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nUser-Agent: Googlebot\r\n\r\n", path)
		require.NoError(t, err)
		return conn.(*net.TCPConn)
	}
	for _, path := range paths {
		for range 5 {
			conn := send(path)
			require.NoError(t, conn.CloseWrite())
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			require.NoError(t, err, path)
			assert.Equal(t, http.StatusOK, answer.StatusCode, path)
			require.NoError(t, conn.Close())
		}
	}
	db := openTestStore(t, url)
	backends := func() []string {
		var pids string
		scan(t, db, &pids, `SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		return strings.Fields(pids)
	}
	before := backends()
	for range 10 {
		for _, path := range paths {
			require.NoError(t, send(path).Close())
		}
	}
	var metrics string
	require.Eventually(t, func() bool {
		_, metrics = r.get(t, "/metrics")
		return !slices.ContainsFunc(paths, func(path string) bool {
			n, _ := strconv.Atoi(metric(metrics, `footfall_http_request_duration_seconds_count{route="`+path+`"}`))
			return n < 15
		})
	}, 20*time.Second, 10*time.Millisecond)
	assert.NotContains(t, metrics, `status="5`)
	assert.Equal(t, "1", metric(metrics, "footfall_ready"))
	assert.Subset(t, backends(), before, "no connection was given up")
	assert.NotContains(t, r.lines.String(), "WARN")
}

// requireUnavailable asks for the page while there is no database: 503 with a
// whole page within 2 s. On a machine that is busy with other tests one answer
// may take longer, three may not.
func (s *testServer) requireUnavailable(t testing.TB, sentence string, headers ...string) {
	t.Helper()
	for try := 1; ; try++ {
		start := time.Now()
		w := s.ask("GET", "/", headers...)
		took := time.Since(start)
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		assert.Equal(t, retryAfter, w.Header().Get("Retry-After"))
		assert.Equal(t, "text/html; charset=utf-8", w.Header().Get("Content-Type"))
		text := pageText(w.Body.String())
		assert.Contains(t, text, "The database is not responding.")
		assert.Contains(t, text, sentence)
		assert.Contains(t, text, "footfall "+s.build.Version, "to the end")
		if took < 2*time.Second {
			return
		}
		require.Less(t, try, 3, "the answer took %s", took)
	}
}

const (
	mayBeLost = "Your visit may or may not have been counted. Please try again in a moment."
	notLost   = "Your visit was not counted. Please try again in a moment."
)

func TestTableLocked(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := newTestServer(t, url)
	require.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
	unlock := holdLock(t, openTestStore(t, url), `LOCK TABLE totals`)
	s.requireUnavailable(t, mayBeLost)
	s.requireUnavailable(t, "The numbers will be back as soon as it is.", "User-Agent", "Googlebot/2.1")
	assert.Equal(t, http.StatusServiceUnavailable, s.ask("GET", "/api/stats").Code)
	assert.Equal(t, "the database does not answer\n", s.ask("GET", "/badge.json").Body.String())
	assert.Equal(t, "the database does not answer\n", s.ask("GET", "/readyz").Body.String())
	for _, path := range []string{"/healthz", "/version", "/metrics", assetPath("style.css")} {
		assert.Equal(t, http.StatusOK, s.ask("GET", path).Code, path)
	}
	unlock()
	s.awaitReady(t) // a try succeeds
	assert.Equal(t, http.StatusOK, s.ask("GET", "/").Code, "the first visit afterwards")
	requireVerified(t, s.store)
}

func TestDatabaseStopsAndComesBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	s := newTestServer(t, c.URL("footfall"))
	for range 5 {
		require.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
		require.Equal(t, http.StatusOK, s.ask("GET", "/api/stats").Code)
	}
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT} { // a shutdown, a crash
		c.end(t, signal)
		// Whether the visit was sent depends on the pool: of a connection that has not
		// been used for a second it knows before that it is dead.
		s.requireUnavailable(t, "counted. Please try again in a moment.")
		s.requireUnavailable(t, "The numbers will be back as soon as it is.", "User-Agent", "Googlebot/2.1")
		w := s.ask("GET", "/readyz")
		assert.Equal(t, http.StatusServiceUnavailable, w.Code)
		assert.Equal(t, "the database does not answer\n", w.Body.String())
		assert.Equal(t, http.StatusOK, s.ask("GET", "/healthz").Code)
		assert.Equal(t, http.StatusOK, s.ask("GET", "/version").Code)
		c.begin(t)
		w = s.ask("GET", "/")
		assert.Equal(t, http.StatusOK, w.Code, "the first request after it is back")
		assert.Equal(t, http.StatusOK, s.ask("GET", "/readyz").Code)
		assert.Equal(t, http.StatusOK, s.ask("GET", "/api/stats").Code)
	}
	assert.Contains(t, pageText(s.ask("GET", "/").Body.String()), "You have visited this page 8 times.")
	requireVerified(t, s.store)
}

// No line of the log holds what a client sends, or its address.
func TestLogHoldsNoClient(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	s.ask("GET", "/?q=query-of-client", "User-Agent", "agent-of-client", "Referer", "https://referer-of-client")
	s.ask("GET", "/", "Peer", "127.0.0.1:1", "X-Forwarded-For", "198.51.100.7")
	s.ask("GET", "/path-of-client")
	s.ask("METHOD-OF-CLIENT", "/")
	lines := s.lines.String()
	for _, secret := range []string{"192.0.2.1", "198.51.100.7", "127.0.0.1", "of-client", "OF-CLIENT"} {
		assert.NotContains(t, lines, secret)
	}
	var requests []map[string]any
	for line := range strings.Lines(lines) {
		var entry map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &entry))
		if entry["msg"] == "request" {
			assert.Positive(t, entry["ms"])
			assert.Positive(t, entry["bytes"])
			for _, key := range []string{"time", "level", "msg", "ms", "bytes"} {
				delete(entry, key)
			}
			requests = append(requests, entry)
		}
	}
	assert.Equal(t, []map[string]any{
		{"method": "GET", "route": "/", "status": 200.0},
		{"method": "GET", "route": "/", "status": 200.0},
		{"method": "GET", "route": "other", "status": 404.0},
		{"method": "other", "route": "other", "status": 405.0},
	}, requests)
}

// What is answered well is not worth a line on a quiet day, nor its cost.
func TestLogOfGoodAnswers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	for _, path := range []string{"/", "/healthz", "/readyz", "/metrics", "/badge.svg"} {
		s.ask("GET", path)
	}
	assert.Equal(t, 5, strings.Count(s.lines.String(), `"level":"DEBUG","msg":"request"`))
	s.draining.Store(true)
	s.ask("GET", "/readyz")
	assert.Regexp(t, `"level":"INFO","msg":"request","method":"GET","route":"/readyz","status":503`, s.lines.String())
}

func TestPanicInHandler(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	working := s.store
	s.store = nil
	w := s.ask("GET", "/badge.svg")
	s.store = working
	assert.Equal(t, http.StatusInternalServerError, w.Code)
	assert.Equal(t, "internal error\n", w.Body.String())
	assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	assert.NotEmpty(t, w.Header().Get("Content-Security-Policy"))
	lines := s.lines.String()
	assert.Contains(t, lines, `"level":"ERROR","msg":"handler panicked","route":"GET /badge.svg","err":"runtime error: invalid memory address or nil pointer dereference","stack":"goroutine `)
	assert.Contains(t, lines, "(*store).look")
	assert.NotContains(t, lines, "192.0.2.1")
	assert.Contains(t, s.ask("GET", "/metrics").Body.String(), `footfall_http_requests_total{route="/badge.svg",status="500"} 1`)
	assert.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
}

// Once a part of the answer is out, only a broken connection shows the failure.
func TestPanicInHalfAnAnswer(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	s.handler = s.observed(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half")
		panic("at 192.0.2.1")
	}))
	assert.PanicsWithValue(t, http.ErrAbortHandler, func() { s.ask("GET", "/") })
	assert.Contains(t, s.lines.String(), "handler panicked")
	assert.Contains(t, s.lines.String(), `"msg":"request","method":"GET","route":"other","status":500,"bytes":4,`)
	w := httptest.NewRecorder()
	s.routes().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	assert.Equal(t, "1", metric(w.Body.String(), `footfall_http_requests_total{route="other",status="500"}`))
}

// The client never sees a cause.
func TestHandlersError(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	s.handler = s.observed(s.withErrors(func(http.ResponseWriter, *http.Request) error { return errors.New("the cause") }))
	w := s.ask("GET", "/")
	assert.Equal(t, http.StatusInternalServerError, w.Code)
	assert.Equal(t, "internal error\n", w.Body.String())
	assert.Contains(t, s.lines.String(), `"msg":"request failed","route":"","err":"the cause"`)
}
