package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"image/png"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

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
		assert.JSONEq(t, `{"schemaVersion": 1, "label": "`+want[0]+`", "message": "`+want[1]+`", "color": "#ffc533"}`, get("/badge.json"+query))
	}
	chart := get("/chart.svg")
	assert.Contains(t, chart, ": 4,200</title>")
	assert.Equal(t, 2*30, strings.Count(chart, "h8v"), "a bar for each day's visits and one for its visitors")
	for _, word := range []string{">busiest: 4,229 on ", ">today, ", ">visits<", ">visitors<"} {
		assert.Contains(t, chart, word)
	}
	// The colours are the page's.
	css, err := assetFiles.ReadFile("assets/style.css")
	require.NoError(t, err)
	lightCSS, darkCSS, _ := strings.Cut(string(css), "@media (prefers-color-scheme: dark)")
	light, dark, _ := strings.Cut(chart, "@media(prefers-color-scheme:dark)")
	for css, svg := range map[string]string{lightCSS: light, darkCSS: dark} {
		for _, name := range []string{"--visits: ", "--visitors: ", "--faint: "} {
			_, color, _ := strings.Cut(css, name)
			assert.Contains(t, svg, `fill:`+color[:7], name)
		}
	}
	// In a window of its own the chart's style is allowed by its hash.
	_, style, _ := strings.Cut(chart, "<style>")
	style, _, _ = strings.Cut(style, "</style>")
	sum := sha256.Sum256([]byte(style))
	assert.Contains(t, s.ask("GET", "/chart.svg").Header().Get("Content-Security-Policy"), "style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'")
	_, err = png.Decode(strings.NewReader(get("/card.png")))
	require.NoError(t, err)
	days := pageText(get("/days"))
	assert.Contains(t, days, "Day (UTC) Visits Visitors New visitors")
	assert.Contains(t, days, s.now().UTC().Format("2 Jan")+" 4,200 1 1")
	assert.Equal(t, int64(7654321), queryInt(t, s.store.reads, `SELECT visits FROM totals`), "counts nothing")
}

// A script or a page of another site may read what is made for it, and no more.
func TestOtherOrigins(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	for path, open := range map[string]bool{
		"/": false, "/version": false, "/readyz": false, "/metrics": false, "/robots.txt": false, "/days": false, "/nowhere": false, assetPath("style.css"): false,
		"/api/stats": true, "/api/stats.csv": true, "/badge.json": true, "/badge.svg": true, "/chart.svg": true, "/card.png": true,
		"/badge.json?show=nothing": true, // so that the script can read why
	} {
		want := []string{"", ""}
		if open {
			want = []string{"*", "cross-origin"}
		}
		h := s.ask("GET", path, "Origin", "https://example.org").Header()
		assert.Equal(t, want, []string{h.Get("Access-Control-Allow-Origin"), h.Get("Cross-Origin-Resource-Policy")}, path)
	}
}

// A picture in somebody's README is not broken while the database is away, and
// soon shows the number again.
func TestPicturesWithoutADatabase(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	execute(t, s.store.reads, `ALTER TABLE totals RENAME TO away`)
	execute(t, s.store.reads, `ALTER TABLE days RENAME TO days_away`)
	for path, words := range map[string]string{
		"/badge.svg": "<title>visitors: unavailable</title>", "/badge.svg?show=today": "<title>visits today: unavailable</title>",
		"/chart.svg": "<title>The database is not responding.</title>", "/card.png": "PNG",
	} {
		w := s.ask("GET", path)
		assert.Equal(t, http.StatusOK, w.Code, path)
		assert.Equal(t, "public, max-age=5", w.Header().Get("Cache-Control"), path)
		assert.Contains(t, w.Body.String(), words)
	}
	for _, path := range []string{"/badge.json", "/api/stats", "/api/stats.csv", "/days"} {
		w := s.ask("GET", path)
		assert.Equal(t, http.StatusServiceUnavailable, w.Code, path)
		assert.Equal(t, "no-store", w.Header().Get("Cache-Control"), path)
	}
	assert.Equal(t, http.StatusBadRequest, s.ask("GET", "/badge.svg?show=nothing").Code)
	execute(t, s.store.reads, `ALTER TABLE away RENAME TO totals`)
	execute(t, s.store.reads, `ALTER TABLE days_away RENAME TO days`)
	assert.Contains(t, s.ask("GET", "/badge.svg").Body.String(), "<title>visitors: 0</title>")
}

// The widths are those of badge-maker 6.0, which draws the badges of Shields.
func TestBadgeWidths(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		show   string
		number int64
		width  string
	}{
		{"visitors", 1, "66"}, {"visitors", 11, "72"}, {"visitors", 4406, "90"}, {"visitors", 1_234_567, "116"}, {"visitors", 9_999_999_999_999, "166"},
		{"visits", 10, "62"}, {"visits", 123, "70"}, {"today", 12, "96"},
	} {
		tl := aTally(tt.number)
		tl.visitors = tt.number
		svg, err := badgeSVG(tl, tt.show)
		require.NoError(t, err)
		assert.Contains(t, string(svg), ` width="`+tt.width+`" height="20" role="img"`, "%s %d", tt.show, tt.number)
	}
	for show, width := range map[string]string{"visitors": "122", "today": "146"} {
		svg, err := badgeSVG(nil, show)
		require.NoError(t, err)
		assert.Contains(t, string(svg), ` width="`+width+`" height="20" role="img"`)
	}
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
		// RFC 9116 wants a URI (securitytxt/security-txt#176).
		"mailto:a@example.org?subject=x y":        "Contact: mailto:a@example.org?subject=x%20y\nExpires: 2026-12-24T00:00:00Z\n",
		"https://пример.рф/путь?q=é#\"":           "Contact: https://%D0%BF%D1%80%D0%B8%D0%BC%D0%B5%D1%80.%D1%80%D1%84/%D0%BF%D1%83%D1%82%D1%8C?q=%C3%A9#%22\nExpires: 2026-12-24T00:00:00Z\n",
		"https://example.org/a%20b?c=%C3%A9|\\^`": "Contact: https://example.org/a%20b?c=%C3%A9%7C%5C%5E%60\nExpires: 2026-12-24T00:00:00Z\n",
		"http://example.org/":                     "Page not found.\n",
		"HTTP://example.org/":                     "Page not found.\n",
		"":                                        "Page not found.\n",
	} {
		s := newTestServer(t, url, "USER_URL", userURL)
		s.now = func() time.Time { return november(24) }
		w := s.ask("GET", "/.well-known/security.txt")
		assert.Equal(t, want, w.Body.String(), userURL)
		assert.Equal(t, strings.HasPrefix(want, "Contact"), w.Code == http.StatusOK, userURL)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := newTestServer(t, url)
	first := s.ask("GET", "/metrics").Body.String()
	for _, result := range []string{"counted", "bot", "embedded", "head", "ignored", "no_address", "prefetch", "unavailable", "unconfirmed"} {
		assert.Equal(t, "0", metric(first, `footfall_visits_total{result="`+result+`"}`), "there from the start")
	}
	// A gauge that begins at 0 would draw a fall to 0 at each deployment.
	assert.NotContains(t, first, "footfall_all_visits ", "not known yet")
	assert.NotContains(t, first, "footfall_all_visitors ", "not known yet")

	s.ask("GET", "/", "User-Agent", `agent-of-client"`)
	s.ask("GET", "/?query-of-client", "Peer", "127.0.0.1:1", "X-Forwarded-For", "198.51.100.7")
	s.ask("GET", "/", "Peer", "127.0.0.1:1", "X-Forwarded-For", "10.0.0.9")
	s.ask("GET", "/", "Peer", "127.0.0.1:1", "X-Forwarded-For", "of-client")
	s.ask("GET", "/", "User-Agent", "Googlebot/2.1")
	s.ask("GET", "/", "Sec-Purpose", "prefetch")
	s.ask("GET", "/", "Sec-Fetch-Dest", "iframe-of-client")
	s.ask("HEAD", "/")
	s.ask("GET", "/", "Peer", "@")
	s.ask("GET", "/path-of-client")
	s.ask("METHOD-OF-CLIENT", "/")
	s.ask("GET", "/readyz")
	s.ask("GET", assetPath("style.css"))
	unlock := holdLock(t, openTestStore(t, url), `LOCK TABLE totals`)
	assert.Equal(t, http.StatusServiceUnavailable, s.ask("GET", "/").Code)
	unlock()

	w := s.ask("GET", "/metrics")
	text := w.Body.String()
	b := thisBuild()
	for series, want := range map[string]string{
		`footfall_build_info{version="` + b.Version + `",commit="` + b.Commit + `",goversion="` + b.Go + `"}`: "1",
		`footfall_visits_total{result="counted"}`:                                                             "4",
		`footfall_visits_total{result="bot"}`:                                                                 "1",
		`footfall_visits_total{result="embedded"}`:                                                            "1",
		`footfall_visits_total{result="prefetch"}`:                                                            "1",
		`footfall_visits_total{result="head"}`:                                                                "1",
		`footfall_visits_total{result="no_address"}`:                                                          "1",
		`footfall_visits_total{result="unavailable"}`:                                                         "0",
		`footfall_visits_total{result="unconfirmed"}`:                                                         "1",
		`footfall_all_visits`:                                                                                 "4",
		`footfall_all_visitors`:                                                                               "4",
		`footfall_ready`:                                                                                      "1",
		`footfall_http_requests_total{route="/",status="200"}`:                                                "8",
		`footfall_http_requests_total{route="/",status="403"}`:                                                "1",
		`footfall_http_requests_total{route="/",status="503"}`:                                                "1",
		`footfall_http_requests_total{route="other",status="404"}`:                                            "1",
		`footfall_http_requests_total{route="other",status="405"}`:                                            "1",
		`footfall_http_requests_total{route="/assets/{file}",status="200"}`:                                   "1",
		`footfall_http_request_duration_seconds_count{route="/"}`:                                             "10",
		`footfall_http_request_duration_seconds_bucket{route="/",le="+Inf"}`:                                  "10",
		`footfall_client_address_total{source="forwarded",scope="public"}`:                                    "1",
		`footfall_client_address_total{source="forwarded",scope="private"}`:                                   "1",
		`footfall_client_address_total{source="peer",scope="private"}`:                                        "1",
		`footfall_batches_total{result="committed"}`:                                                          "4",
		`footfall_batches_total{result="abandoned"}`:                                                          "1",
		`footfall_batch_duration_seconds_count`:                                                               "4",
	} {
		assert.Equal(t, want, metric(text, series), series)
	}
	for _, series := range []string{
		`footfall_database_connections{state="open"}`, `footfall_database_connections{state="idle"}`,
		`go_goroutines`, `process_resident_memory_bytes`, `process_start_time_seconds`, `process_cpu_seconds_total`,
	} {
		assert.NotContains(t, []string{"", "0"}, metric(text, series), series)
	}
	requireValidMetrics(t, text)

	// What a client can choose is in no label.
	for _, secret := range []string{"of-client", "OF-CLIENT", "198.51.100.7", "10.0.0.9", "192.0.2.1"} {
		assert.NotContains(t, text, secret)
	}
	var names []string
	for _, match := range regexp.MustCompile(`[{,]([a-z]+)="`).FindAllStringSubmatch(text, -1) {
		names = append(names, match[1])
	}
	slices.Sort(names)
	assert.Equal(t, []string{"commit", "goversion", "le", "result", "route", "scope", "source", "state", "status", "version"}, slices.Compact(names))
}

func TestHistogram(t *testing.T) {
	t.Parallel()
	var h histogram
	for _, took := range []time.Duration{0, 500 * time.Microsecond, 501 * time.Microsecond, time.Second, 5 * time.Second, time.Hour} {
		h.observe(took)
	}
	assert.Equal(t, uint64(6), h.count)
	assert.InDelta(t, 3606.001001, h.sum, 1e-9)
	assert.Equal(t, uint64(2), h.buckets[0], "a bound belongs to its bucket")
	assert.Equal(t, uint64(1), h.buckets[1])
	assert.Equal(t, uint64(1), h.buckets[len(bounds)], "beyond the last bound")
}

func TestLabelsAreEscaped(t *testing.T) {
	t.Parallel()
	assert.Equal(t, `{a="1\"2\\3\n4",b=""}`, labels("a", "1\"2\\3\n4", "b", ""))
}
