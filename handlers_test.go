package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

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

func TestPage(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t), "USER_NAME", "Ada <b>", "USER_URL", "https://example.org/?a=1&b=2")
	steps := []struct {
		headers  []string
		sentence string
		totals   []string
		how      string
	}{
		{nil, "You have visited this page 1 time.", []string{"1 visitor ", "1 visit ", "1 visit today"}, "Recognised by your direct address."},
		{nil, "You have visited this page 2 times.", []string{"1 visitor ", "2 visits ", "2 visits today"}, "Recognised by your direct address."},
		{[]string{"Peer", "192.0.2.2:1"}, "You have visited this page 1 time.", []string{"2 visitors ", "3 visits "}, "Recognised by your direct address."},
		{[]string{"Peer", "127.0.0.1:1", "X-Forwarded-For", "192.0.2.1"}, "You have visited this page 3 times.", []string{"2 visitors ", "4 visits "}, "Recognised by the address that a trusted proxy forwarded."},
		{[]string{"X-Forwarded-For", "1.2.3.4"}, "You have visited this page 4 times.", []string{"2 visitors ", "5 visits "}, "Recognised by your direct address."},
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
	assert.Contains(t, text, "435,001 visits", "of the last 30 days: today and 29 before it")
	assert.Contains(t, text, "29,000", "the busiest of them")
	assert.NotContains(t, text, "30,000", "31 days ago")
	assert.Contains(t, text, "deployed by n/a.")
	assert.NotContains(t, w.Body.String(), "<a ")
}

func TestPageDoesNotCount(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	require.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
	const never, once = "You have not been counted on this page.", "You have visited this page 1 time."
	for name, tt := range map[string]struct {
		headers []string
		want    []string
	}{
		"bot":       {[]string{"User-Agent", "Googlebot/2.1", "Peer", "192.0.2.9:1"}, []string{never, "This visit was not counted: your browser calls itself a bot"}},
		"known bot": {[]string{"User-Agent", "Googlebot/2.1"}, []string{once, "This visit was not counted: your browser calls itself a bot"}},
		"prefetch":  {[]string{"Sec-Purpose", "prefetch;prerender"}, []string{once, "This visit was not counted: your browser fetched the page ahead of time."}},
		"nobody":    {[]string{"Peer", "@"}, []string{never, "This visit was not counted. Not recognised: the proxy in front of this page does not say who you are."}},
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

func TestRoutes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t), "USER_URL", "https://example.org/")
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
		{"GET", "/badge.json", 200, jsonType, minute},
		{"GET", "/badge.json?show=all", 400, plain, "no-store"},
		{"GET", "/chart.svg", 200, "image/svg+xml", minute},
		{"GET", "/chart.svg?theme=dark", 200, "image/svg+xml", minute},
		{"GET", "/chart.svg?theme=blue", 400, plain, "no-store"},
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

func TestVersion(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	var got map[string]string
	require.NoError(t, json.Unmarshal(s.ask("GET", "/version").Body.Bytes(), &got))
	b := thisBuild()
	assert.Equal(t, map[string]string{"version": b.Version, "build": b.Number, "commit": b.Commit, "built": b.Built, "go": b.Go}, got)
	for key, value := range got {
		assert.NotEmpty(t, value, key)
	}
}

func TestStats(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	for range 3 {
		s.ask("GET", "/")
	}
	s.ask("GET", "/", "Peer", "192.0.2.2:1")
	type day struct {
		Day         string `json:"day"`
		Visits      int64  `json:"visits"`
		Visitors    int64  `json:"visitors"`
		NewVisitors int64  `json:"new_visitors"`
	}
	var got struct {
		Visits, Visitors int64
		Today            day
		Days             []day
		Since            time.Time
	}
	for range 2 { // asking counts nothing
		decoder := json.NewDecoder(s.ask("GET", "/api/stats").Body)
		decoder.DisallowUnknownFields()
		require.NoError(t, decoder.Decode(&got))
		assert.Equal(t, int64(4), got.Visits)
		assert.Equal(t, int64(2), got.Visitors)
		require.Len(t, got.Days, historyDays)
		assert.Equal(t, got.Days[historyDays-1], got.Today)
		assert.Equal(t, int64(4), got.Today.Visits)
		assert.Equal(t, int64(2), got.Today.Visitors)
		assert.Equal(t, int64(2), got.Today.NewVisitors)
		assert.Less(t, got.Days[0].Day, got.Days[1].Day, "oldest first")
		assert.WithinDuration(t, time.Now(), got.Since, 5*time.Minute)
		got.Days = nil
	}
}

// All of what another page or program may show is one look at one count.
func TestBadgesAndChart(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	get := func(path string) string {
		t.Helper()
		w := s.ask("GET", path)
		require.Equal(t, http.StatusOK, w.Code, w.Body)
		if strings.Contains(path, ".svg") {
			require.NoError(t, xml.Unmarshal(w.Body.Bytes(), new(struct{})), "well-formed")
		}
		return w.Body.String()
	}
	assert.Contains(t, get("/badge.svg"), "<title>visitors: 0</title>")
	assert.Contains(t, get("/chart.svg"), "<title>0 visits from ")
	execute(t, s.store.reads, `UPDATE totals SET visitors = 1234567, visits = 7654321`)
	execute(t, s.store.reads, `
		INSERT INTO days (day, visits, visitors, new_visitors)
		SELECT (now() AT TIME ZONE 'UTC')::date - n, 4200 + n, 1, 1
		FROM generate_series(0, 29) AS n`)
	for query, want := range map[string][2]string{
		"": {"visitors", "1,234,567"}, "?show=visitors": {"visitors", "1,234,567"}, "?show=visits": {"visits", "7,654,321"}, "?show=today": {"visits today", "4,200"},
	} {
		assert.Contains(t, get("/badge.svg"+query), "<title>"+want[0]+": "+want[1]+"</title>")
		// Shields refuses a badge that lacks one of these or has another schema (shields.io/badges/endpoint-badge).
		assert.JSONEq(t, `{"schemaVersion": 1, "label": "`+want[0]+`", "message": "`+want[1]+`"}`, get("/badge.json"+query))
	}
	light, dark := get("/chart.svg"), get("/chart.svg?theme=dark")
	assert.Equal(t, light, get("/chart.svg?theme=light"))
	assert.Contains(t, light, "today: 4,200</title>")
	assert.Equal(t, 30, strings.Count(light, "h8v"), "a bar for each day")
	// The colours are the page's.
	css, err := assetFiles.ReadFile("assets/style.css")
	require.NoError(t, err)
	lightCSS, darkCSS, _ := strings.Cut(string(css), "@media (prefers-color-scheme: dark)")
	for css, svg := range map[string]string{lightCSS: light, darkCSS: dark} {
		for _, name := range []string{"--bar: ", "--today: "} {
			_, color, _ := strings.Cut(css, name)
			assert.Contains(t, svg, `fill="`+color[:7]+`"`, name)
		}
	}
	assert.Equal(t, int64(7654321), queryInt(t, s.store.reads, `SELECT visits FROM totals`), "counts nothing")
}

// The days come as they are kept, and what lies between them as zeros.
func TestStatsCSV(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	s.now = func() time.Time { return november(24) }
	csv := func() string { return s.ask("GET", "/api/stats.csv").Body.String() }
	assert.Equal(t, "day,visits,visitors,new_visitors\n", csv())
	alterDatabase(t, s.store, `datestyle = "German"`)
	s.store.reads.SetMaxIdleConns(0) // the next connection is new
	execute(t, s.store.reads, `INSERT INTO days (day, visits, visitors, new_visitors) VALUES ('2026-11-22', 5000000000, 2, 1), ('2026-11-24', 3, 1, 0)`)
	assert.Equal(t, "day,visits,visitors,new_visitors\n2026-11-22,5000000000,2,1\n2026-11-23,0,0,0\n2026-11-24,3,1,0\n", csv())
	execute(t, s.store.reads, `INSERT INTO days (day, visits, visitors, new_visitors) VALUES ('2016-11-24', 1, 1, 1)`)
	assert.Equal(t, 1+3653, strings.Count(csv(), "\n"), "ten years")
}

// RFC 9116: a contact that is no plain http, and an end within a year.
func TestSecurityTxt(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	for userURL, want := range map[string]string{
		"https://example.org/?a=1&b=2": "Contact: https://example.org/?a=1&b=2\nExpires: 2026-12-24T00:00:00Z\n",
		"mailto:ann@example.org":       "Contact: mailto:ann@example.org\nExpires: 2026-12-24T00:00:00Z\n",
		"http://example.org/":          "There is nothing at this address.\n",
		"HTTP://example.org/":          "There is nothing at this address.\n",
		"":                             "There is nothing at this address.\n",
	} {
		s := newTestServer(t, url, "USER_URL", userURL)
		s.now = func() time.Time { return november(24) }
		w := s.ask("GET", "/.well-known/security.txt")
		assert.Equal(t, want, w.Body.String(), userURL)
		assert.Equal(t, strings.HasPrefix(want, "Contact"), w.Code == http.StatusOK, userURL)
	}
}

// A person who gets no page gets one that looks like it; a program gets a line.
func TestErrorsForPeople(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t), "USER_NAME", "Ann")
	const browser, program = "text/html,application/xhtml+xml,*/*;q=0.8", "*/*"
	for _, tt := range []struct {
		method, path string
		status       int
		sentence     string
	}{
		{"GET", "/nowhere", 404, "There is nothing at this address."},
		{"GET", "/assets/nothing.css", 404, "There is nothing at this address."},
		{"POST", "/", 405, "This address can only be read."},
		{"GET", "/badge.svg?show=<b>", 400, "show must be one of: visitors, visits, today."},
	} {
		w := s.ask(tt.method, tt.path, "Accept", program)
		assert.Equal(t, tt.status, w.Code)
		assert.Equal(t, tt.sentence+"\n", w.Body.String())
		w = s.ask(tt.method, tt.path, "Accept", browser)
		assert.Equal(t, tt.status, w.Code)
		assert.Equal(t, "text/html; charset=utf-8", w.Header().Get("Content-Type"))
		assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
		read := pageText(w.Body.String())
		assert.Contains(t, read, tt.sentence+" You may be looking for the page that counts.")
		assert.Contains(t, read, "deployed by Ann.", "to the end")
		for _, absent := range []string{"ecognised", "counted.", "visited"} {
			assert.NotContains(t, read, absent)
		}
		assert.Equal(t, tt.status == 405, w.Header().Get("Allow") == "GET, HEAD")
	}
	// What a client writes must not pile up in memory with the sentences that are kept.
	kept := func() (n int) { youParts.Range(func(any, any) bool { n++; return true }); return n }
	before := kept()
	for i := range 100 {
		s.ask("GET", fmt.Sprintf("/badge.svg?show=%d", i), "Accept", browser)
	}
	assert.Less(t, kept()-before, 50) // other tests render sentences, too
	assert.Equal(t, "text/plain; charset=utf-8", s.ask("GET", "/nowhere").Header().Get("Content-Type"), "without Accept")
	s.draining.Store(true)
	assert.Equal(t, "shutting down\n", s.ask("GET", "/readyz", "Accept", browser).Body.String(), "a probe's answer stays a line")
	assert.Zero(t, queryInt(t, s.store.reads, `SELECT visits FROM totals`))
}

// What makes the preview of a link sees the number and is not counted.
func TestLinkPreview(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	require.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
	execute(t, s.store.reads, `UPDATE totals SET visitors = 2318, visits = 14902`)
	for _, agent := range []string{
		"facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)", "Twitterbot/1.0", "WhatsApp/2.23.20.0",
		"Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)", "TelegramBot (like TwitterBot)", "LinkedInBot/1.0 (compatible; Mozilla/5.0)",
		"Mozilla/5.0 (compatible; Discordbot/2.0; +https://discordapp.com)", "Mozilla/5.0 (Windows NT 6.1; WOW64) SkypeUriPreview Preview/0.5",
	} {
		w := s.ask("GET", "/", "User-Agent", agent)
		assert.Contains(t, w.Body.String(), `property="og:title" content="2,318 visitors"`, agent)
		assert.Contains(t, w.Body.String(), `name="description" property="og:description" content="A page that counts its unique visitors exactly: 2,318 visitors, 14,902 visits since `)
		assert.Contains(t, pageText(w.Body.String()), "This visit was not counted")
	}
	assert.Equal(t, int64(14902), queryInt(t, s.store.reads, `SELECT visits FROM totals`))
	assert.Contains(t, string(s.page.render(nil).above), `content="A page that counts its unique visitors exactly."`, "without its database")
}

// The small things are the same for curl and for GitHub's image proxy, through
// a real connection, and neither counts. The browser's turn is in e2e.
func TestSmallThingsByCurl(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	r := start(t, "DATABASE_URL", url, "USER_URL", "mailto:ann@example.org")
	for _, path := range []string{
		"/robots.txt", "/favicon.ico", "/.well-known/security.txt", "/api/stats.csv", "/chart.svg", "/chart.svg?theme=dark",
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

func TestAssets(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	page := s.ask("GET", "/").Body.String()
	for _, name := range []string{"style.css", "favicon.svg"} {
		t.Run(name, func(t *testing.T) {
			path := assetPath(name)
			assert.Contains(t, page, `href="`+path+`"`)
			assert.Regexp(t, `^/assets/[a-z]+\.[0-9a-f]{8,}\.[a-z]+$`, path)

			w := s.ask("GET", path)
			require.Equal(t, http.StatusOK, w.Code)
			want, err := assetFiles.ReadFile("assets/" + name)
			require.NoError(t, err)
			assert.Equal(t, string(want), w.Body.String())
			assert.Empty(t, w.Header().Get("Content-Encoding"))
			assert.Equal(t, "Accept-Encoding", w.Header().Get("Vary"))
			etag := w.Header().Get("ETag")
			assert.Regexp(t, `^W/"[0-9a-f]{8}"$`, etag)

			w = s.ask("GET", path, "Accept-Encoding", "br, gzip")
			require.Equal(t, "gzip", w.Header().Get("Content-Encoding"))
			assert.Less(t, w.Body.Len(), len(want))
			unpacked, err := gzip.NewReader(w.Body)
			require.NoError(t, err)
			plain, err := io.ReadAll(unpacked)
			require.NoError(t, err)
			assert.Equal(t, string(want), string(plain))

			w = s.ask("GET", path, "If-None-Match", etag)
			assert.Equal(t, http.StatusNotModified, w.Code)
			assert.Zero(t, w.Body.Len())
			assert.Equal(t, http.StatusOK, s.ask("GET", path, "If-None-Match", `"another"`).Code)
			assert.Equal(t, http.StatusNotModified, s.ask("GET", path, "If-None-Match", `"another", `+etag).Code)
			assert.Equal(t, http.StatusNotModified, s.ask("GET", path, "If-None-Match", "*").Code)
			for header, want := range map[string]string{
				"gzip;q=0": "", "gzip; q=0.000, br": "", "br, GZIP;q=0.5": "gzip", "xgzip": "", "gzip;q=1.0": "gzip",
			} {
				assert.Equal(t, want, s.ask("GET", path, "Accept-Encoding", header).Header().Get("Content-Encoding"), header)
			}
		})
	}
}

func TestReadyz(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := newTestServer(t, url)
	newest := len(ourMigrations())
	ask := func(status int, reason string) {
		t.Helper()
		w := s.ask("GET", "/readyz")
		assert.Equal(t, status, w.Code)
		assert.Equal(t, reason, strings.TrimSpace(w.Body.String()))
		if status == http.StatusServiceUnavailable {
			assert.Equal(t, retryAfter, w.Header().Get("Retry-After"))
		}
	}
	ask(200, "ready")
	execute(t, s.store.reads, `INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, 'newer', '')`, newest+1)
	ask(200, "ready")
	execute(t, s.store.reads, `DELETE FROM schema_migrations WHERE version >= $1`, newest)
	w := s.ask("GET", "/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, w.Code)
	assert.Regexp(t, `^the schema is at version \d+, this program needs \d+: run footfall migrate\n$`, w.Body.String())
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
	require.Equal(t, http.StatusOK, s.ask("GET", "/readyz").Code)
	require.Equal(t, int64(0), queryInt(t, s.store.reads, `SELECT visits FROM totals`), "a try counts nothing")
	execute(t, s.store.reads, `ALTER TABLE visitors ADD CONSTRAINT full_disk CHECK (visits < 0) NOT VALID`)
	require.Equal(t, http.StatusServiceUnavailable, s.ask("GET", "/readyz").Code, "before the first visit")
	execute(t, s.store.reads, `ALTER TABLE visitors DROP CONSTRAINT full_disk`)
	require.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
	execute(t, s.store.reads, `ALTER TABLE visitors ADD CONSTRAINT full_disk CHECK (visits < 0) NOT VALID`)
	require.Equal(t, http.StatusOK, s.ask("GET", "/readyz").Code, "the last visit was counted")
	require.Equal(t, http.StatusServiceUnavailable, s.ask("GET", "/").Code)
	for range 2 {
		w := s.ask("GET", "/readyz")
		assert.Equal(t, http.StatusServiceUnavailable, w.Code)
		assert.Equal(t, "the database takes no visits\n", w.Body.String())
	}
	execute(t, s.store.reads, `ALTER TABLE visitors DROP CONSTRAINT full_disk`)
	assert.Equal(t, http.StatusOK, s.ask("GET", "/readyz").Code, "a try succeeds")
	assert.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
	assert.Equal(t, int64(1), queryInt(t, s.store.reads, `SELECT count(*) FROM visitors`), "a try leaves nothing")
	assert.Equal(t, int64(2), queryInt(t, s.store.reads, `SELECT visits FROM totals`))
	requireVerified(t, s.store)
}

// A crowd of readers cannot make the service look broken.
func TestReadyzInACrowd(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	for range maxReads {
		conn, err := s.store.reads.Conn(t.Context())
		require.NoError(t, err)
		defer conn.Close()
	}
	require.Equal(t, http.StatusServiceUnavailable, s.ask("GET", "/badge.svg").Code)
	assert.Equal(t, http.StatusOK, s.ask("GET", "/readyz").Code)
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
		assert.Contains(t, text, "The database does not answer.")
		assert.Contains(t, text, sentence)
		assert.Contains(t, text, "deployed by", "to the end")
		if took < 2*time.Second {
			return
		}
		require.Less(t, try, 3, "the answer took %s", took)
	}
}

const (
	mayBeLost = "Your visit may not have been counted. Please come back in a moment."
	notLost   = "Your visit was not counted. Please come back in a moment."
)

func TestTableLocked(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := newTestServer(t, url)
	require.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
	unlock := holdLock(t, openTestStore(t, url), `LOCK TABLE totals`)
	s.requireUnavailable(t, mayBeLost)
	s.requireUnavailable(t, "The numbers are back as soon as it is.", "User-Agent", "Googlebot/2.1")
	assert.Equal(t, http.StatusServiceUnavailable, s.ask("GET", "/api/stats").Code)
	assert.Equal(t, "the database does not answer\n", s.ask("GET", "/badge.svg").Body.String())
	assert.Equal(t, "the database takes no visits\n", s.ask("GET", "/readyz").Body.String())
	for _, path := range []string{"/healthz", "/version", "/metrics", assetPath("style.css")} {
		assert.Equal(t, http.StatusOK, s.ask("GET", path).Code, path)
	}
	unlock()
	assert.Equal(t, http.StatusOK, s.ask("GET", "/readyz").Code, "a try succeeds")
	assert.Equal(t, http.StatusOK, s.ask("GET", "/").Code, "the first visit afterwards")
	requireVerified(t, s.store)
}

func TestDatabaseStopsAndComesBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	s := newTestServer(t, c.url("footfall"))
	for range 5 {
		require.Equal(t, http.StatusOK, s.ask("GET", "/").Code)
		require.Equal(t, http.StatusOK, s.ask("GET", "/api/stats").Code)
	}
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT} { // a shutdown, a crash
		c.end(t, signal)
		s.requireUnavailable(t, mayBeLost)
		s.requireUnavailable(t, "The numbers are back as soon as it is.", "User-Agent", "Googlebot/2.1")
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

// A probe that is answered well is not worth a line on a quiet day.
func TestLogOfProbes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	s.ask("GET", "/healthz")
	s.ask("GET", "/readyz")
	s.ask("GET", "/metrics")
	assert.Equal(t, 3, strings.Count(s.lines.String(), `"level":"DEBUG","msg":"request"`))
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
	s.handler = s.observed(s.try(func(http.ResponseWriter, *http.Request) error { return errors.New("the cause") }))
	w := s.ask("GET", "/")
	assert.Equal(t, http.StatusInternalServerError, w.Code)
	assert.Equal(t, "internal error\n", w.Body.String())
	assert.Contains(t, s.lines.String(), `"msg":"request failed","route":"","err":"the cause"`)
}

func TestGroup(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		0: "0", 999: "999", 1000: "1,000", 123456: "123,456", 1234567: "1,234,567",
		9223372036854775807: "9,223,372,036,854,775,807", -1: "-1", -1000: "-1,000", -123456: "-123,456",
	} {
		assert.Equal(t, want, group(n))
	}
}

// Every sentence of the page can be rendered, none but the wanted is there.
func TestEverySentence(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	for _, result := range []result{counted, isBot, isPrefetch, noAddress, unavailable, unconfirmed} {
		for _, source := range []source{fromPeer, fromForwarded, fromNobody} {
			w := httptest.NewRecorder()
			p := s.page.render(nil)
			require.NoError(t, p.write(w, http.StatusOK, you{Result: result, Source: source, NoDatabase: result == unavailable || result == unconfirmed}, 3))
			text := pageText(w.Body.String())
			assert.Equal(t, result == counted, strings.Contains(text, "This visit was counted."), "%s", result)
			assert.Equal(t, result == unconfirmed, strings.Contains(text, mayBeLost), "%s", result)
			assert.Equal(t, result == unavailable, strings.Contains(text, notLost), "%s", result)
			assert.Equal(t, result != unavailable && result != unconfirmed, strings.Contains(text, "3 times"), "%s", result)
			assert.Equal(t, 1, bytes.Count([]byte(text), []byte("ecognised")), "%s", source)
		}
	}
}
