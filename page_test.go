package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"footfall/internal/visitor"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// monday is the last day of every tally here.
var monday = time.Date(2026, time.March, 2, 0, 0, 0, 0, time.UTC)

var (
	anyTag    = regexp.MustCompile(`<[^>]*>`)
	someSpace = regexp.MustCompile(`\s+`)
)

func TestPageStates(t *testing.T) {
	t.Parallel()
	month := aTally(3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8, 3, 2, 7)
	million := aTally(1_234_567)
	million.visits, million.visitors = 91_234_567, 7_654_321
	tests := map[string]struct {
		tally    *tally
		greeting greeting
		own      standing
		want     []string // in what is read
		absent   []string
	}{
		"before the first visit": {
			aTally(), greeting{Result: visitor.Bot, Source: visitor.FromPeer}, standing{},
			[]string{
				"You have not been counted here yet.",
				"This visit was not counted: your browser identifies itself as a program, such as a bot, monitor or link preview. You were recognised by your IP address.",
				"0 visitors 0 visits 0 visits today", "no visits in these 30 days", "today, 2 Mar: 0",
			},
			[]string{"busiest:", "This visit was counted"},
		},
		"the first visit": {
			&tally{visits: 1, visitors: 1, days: aTally(1).days, background: background{since: monday, database: "PostgreSQL 17.2"}},
			greeting{Result: visitor.Counted, Source: visitor.FromPeer}, standing{1, 1},
			[]string{
				"1 visitor · footfall", "You are visitor 1.",
				"You have visited this page 1 time. This visit was counted. You were recognised by your IP address.",
				"1 visitor 1 visit 1 visit today", "busiest: 1 today", "today, 2 Mar: 1",
				"Counting since 2 March 2026 in PostgreSQL 17.2. footfall 1.2.3, deployed by Ann.",
			},
			[]string{"1 times", "1 visits", "1 visitors", "no visits in"},
		},
		"one of many new ones": {
			month, greeting{Result: visitor.Counted, Source: visitor.FromPeer}, standing{1, 4407},
			[]string{"You are visitor 4,407. You have visited this page 1 time. This visit was counted."}, []string{"1 times"},
		},
		"thirty days": {
			month, greeting{Result: visitor.Counted, Source: visitor.FromForwarded}, standing{visits: 12},
			[]string{
				"You have visited this page 12 times.",
				"This visit was counted. You were recognised by your IP address, forwarded by a trusted proxy.",
				"These days as a table", "7 visits today", "1 Feb", "busiest: 9 on 6 Feb", "today, 2 Mar: 7",
			},
			[]string{"12 time.", "You are visitor"},
		},
		"a day of none": {
			aTally(2, 0, 0), greeting{Result: visitor.Ignored, Source: visitor.FromPeer}, standing{visits: 2},
			[]string{
				"You have visited this page 2 times.", "0 visits today", "busiest: 2 on 28 Feb", "today, 2 Mar: 0",
				"This visit was not counted: visits from your network are excluded.",
			}, nil,
		},
		"millions": {
			million, greeting{Result: visitor.Counted, Source: visitor.FromPeer}, standing{visits: 1_234_567},
			[]string{"You have visited this page 1,234,567 times.", "7,654,321 visitors 91,234,567 visits 1,234,567 visits today", "busiest: 1,234,567 today"}, nil,
		},
		"no address": {
			month, greeting{Result: visitor.NoAddress, Source: visitor.FromNobody}, standing{},
			[]string{"This visit was not counted. You could not be recognised: the proxy in front of this page did not pass on your IP address."}, []string{"Recognised by"},
		},
		"no database": {
			nil, greeting{Result: visitor.Unconfirmed, Source: visitor.FromPeer, NoDatabase: true}, standing{},
			[]string{"The database is not responding.", "Your visit may or may not have been counted. Please try again in a moment.", "footfall 1.2.3, deployed by Ann."},
			[]string{"visits today", "Counting since", "was counted.", "recognised by your"},
		},
		"no database, not asked": {
			nil, greeting{Result: visitor.Unavailable, Source: visitor.FromPeer, NoDatabase: true}, standing{},
			[]string{"The database is not responding.", "Your visit was not counted. Please try again in a moment."},
			[]string{"Your visit may"},
		},
		"no database, not counted": {
			nil, greeting{Result: visitor.Bot, Source: visitor.FromPeer, NoDatabase: true}, standing{},
			[]string{"The database is not responding.", "The numbers will be back as soon as it is.", "This visit was not counted"},
			[]string{"Your visit may"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			body := rendered(t, &page{version: "1.2.3", userName: "Ann"}, tt.tally, tt.greeting, tt.own)
			read := pageText(body)
			for _, want := range append(tt.want, "What counts as a visitor?", "What is stored?") {
				assert.Contains(t, read, want)
			}
			for _, absent := range tt.absent {
				assert.NotContains(t, read, absent)
			}
			if tt.own.visits > 0 { // what other programs read
				assert.Contains(t, body, fmt.Sprintf("You have visited this page <strong>%s</strong> time", group(tt.own.visits)))
			}
			assert.NotContains(t, body, "ZgotmplZ", "html/template refused a value")
			assert.NotRegexp(t, `(?i)<script|<style|\sstyle=|\son\w+=|javascript:`, body, "the content security policy forbids it")
			assert.NotRegexp(t, `(?i)(src|href|url\()\s*=?\s*"?(https?:)?//`, body, "another host's file")
			assert.Equal(t, strings.Count(body, "<svg"), strings.Count(body, "</svg>"))
		})
	}
}

func TestPageTrail(t *testing.T) {
	t.Parallel()
	for visits, strides := range map[int64]int{1: 1, 2: 2, 39: 39, 40: 40, 1_000_000: 40} {
		body := rendered(t, &page{}, aTally(1), greeting{Result: visitor.Counted}, standing{visits: visits})
		assert.Contains(t, body, fmt.Sprintf(`viewBox="0 0 %d 40"`, strides*40), visits)
	}
	assert.NotContains(t, rendered(t, &page{}, aTally(1), greeting{Result: visitor.Bot}, standing{}), "trail")
}

// What is kept of one page must not show on the next.
func TestPageFollowsTheCount(t *testing.T) {
	t.Parallel()
	p := &page{}
	read := func(tl *tally, g greeting, own standing) string { return pageText(rendered(t, p, tl, g, own)) }
	first := read(aTally(5, 3), greeting{Result: visitor.Counted, Source: visitor.FromPeer}, standing{visits: 2})
	assert.Contains(t, first, "today, 2 Mar: 3")
	assert.Contains(t, first, "this page 2 times")
	late := read(aTally(6, 4), greeting{Result: visitor.Counted, Source: visitor.FromPeer}, standing{visits: 3}) // a visit of yesterday came late
	assert.Contains(t, late, "busiest: 6 on 1 Mar")
	assert.Contains(t, late, "today, 2 Mar: 4")
	assert.Contains(t, late, "this page 3 times")
	assert.Contains(t, read(aTally(6, 4), greeting{Result: visitor.Counted, Source: visitor.FromForwarded}, standing{visits: 3}), "trusted proxy")
	// No gap is left open, whatever is in the others.
	assert.Equal(t, -1, strings.IndexFunc(first+late, isMark))
}

func TestPageNamesWhoDeployedIt(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ name, url, want string }{
		"link":        {"Ann", "https://example.org/?a=1&b=2", `<a href="https://example.org/?a=1&amp;b=2"><bdi>Ann</bdi></a>.`},
		"mail":        {"Ann", "mailto:ann@example.org", `<a href="mailto:ann@example.org"><bdi>Ann</bdi></a>.`},
		"no link":     {"Ann", "", `deployed by <bdi>Ann</bdi>.`},
		"nothing set": {"n/a", "", `footfall .`},
		"right left":  {"مريم", "", `<bdi>مريم</bdi>.`},
		"hostile":     {`"><script>alert(1)</script>`, `https://example.org/"onclick="x`, `<a href="https://example.org/%22onclick=%22x"><bdi>&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;</bdi></a>.`},
		"script link": {"Ann", "javascript:alert(1)", `<a href="#ZgotmplZ"><bdi>Ann</bdi></a>.`}, // the settings refuse it before
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			body := rendered(t, &page{userName: tt.name, userURL: tt.url}, aTally(1), greeting{Result: visitor.Counted}, standing{1, 1})
			assert.Contains(t, body, tt.want)
			assert.NotContains(t, body, "<script")
		})
	}
}

// The chart begins with the day on which counting began, or the first that has a visit.
func TestChartBegins(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		visits []int64
		since  time.Time
		words  string
	}{
		{[]int64{5}, time.Time{}, "5 visits from 1 Feb to 2 Mar; busiest: 5 today; today, 2 Mar: 5"},
		{[]int64{1}, monday.Add(time.Hour), "1 visit from 2 Mar to 2 Mar; busiest: 1 today; today, 2 Mar: 1"},
		{[]int64{4, 0, 0, 0, 2}, monday.AddDate(0, 0, -4), "6 visits from 26 Feb to 2 Mar; busiest: 4 on 26 Feb; today, 2 Mar: 2"},
		{[]int64{0, 2}, monday.AddDate(0, 0, -4), "2 visits from 26 Feb to 2 Mar; busiest: 2 today; today, 2 Mar: 2"},
		{[]int64{3, 2}, monday, "5 visits from 1 Mar to 2 Mar; busiest: 3 on 1 Mar; today, 2 Mar: 2"},
	} {
		tl := aTally(tt.visits...)
		tl.since = tt.since
		assert.Equal(t, tt.words, newChart(tl).Words)
	}
}

func TestPlural(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "visits", 1: "visit", 2: "visits", 11: "visits", 1001: "visits"} {
		assert.Equal(t, want, plural(group(n), "visit"), n)
	}
}

// A busy page with long numbers leaves with its headers in one write, net/http's
// buffer: a second one is a second packet and 2 to 14 µs per visit. The first view
// is the page with its style, typeface and pictures.
func TestPageSize(t *testing.T) {
	t.Parallel()
	const writeBuffer, billion = 4096, 1_000_000_000
	var visits []int64
	for i := range historyDays {
		visits = append(visits, billion-int64(i)) // a bar for each
	}
	tl := aTally(visits...)
	tl.visits, tl.visitors, tl.database = 30*billion, billion, "PostgreSQL 17.12"
	tl.since = time.Date(2025, time.September, 30, 0, 0, 0, 0, time.UTC)
	tl.carriedVisits, tl.carriedVisitors = billion, billion
	tl.evidence = []evidence{{"recount", true, monday}, {"restore", true, monday}}
	cfg, err := loadConfig(environment("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing", "USER_NAME", "Ann Example", "USER_URL", "https://www.example.org/"))
	require.NoError(t, err)
	log, _ := newLog(t)
	s := newServer(cfg, log)
	for name, tt := range map[string]struct {
		greeting greeting
		own      standing
	}{
		"first": {greeting{Result: visitor.Counted, Source: visitor.FromForwarded}, standing{1, billion}},
		"again": {greeting{Result: visitor.Counted, Source: visitor.FromForwarded}, standing{visits: billion}},
	} {
		web := httptest.NewServer(s.observed(s.secured(s.withErrors(func(w http.ResponseWriter, r *http.Request) error {
			r.Host = "count.example.org"
			return s.page.of(tl).write(w, r, http.StatusOK, tt.greeting, tt.own)
		}))))
		conn, err := net.Dial("tcp", web.Listener.Addr().String())
		require.NoError(t, err)
		_, err = conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
		require.NoError(t, err)
		answer, err := io.ReadAll(conn)
		require.NoError(t, err)
		require.NoError(t, conn.Close())
		web.Close()
		header, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
		size := len(answer) - len("Connection: close\r\n")
		first := len(body)
		for _, file := range assets {
			first += len(file.body)
		}
		t.Logf("%s: header %d bytes, page %d, first view %d", name, len(header)+4, len(body), first)
		assert.Contains(t, string(body), "1,000,000,000")
		assert.LessOrEqual(t, size, writeBuffer, name)
		assert.LessOrEqual(t, first, 25<<10)
	}
}

// Every text colour on its ground: 7 to 1 is WCAG 2.2 AAA (1.4.6). The bars carry
// meaning without being text: 3 to 1 (1.4.11).
func TestPageContrast(t *testing.T) {
	t.Parallel()
	var css string
	for _, file := range assets {
		if strings.HasPrefix(file.contentType, "text/css") {
			css = string(file.body)
		}
	}
	light, rest, found := strings.Cut(css, "@media (prefers-color-scheme: dark)")
	require.True(t, found)
	dark, _, _ := strings.Cut(rest, "\n}")
	for scheme, text := range map[string]string{"light": light, "dark": dark} {
		colors := map[string]string{}
		for _, m := range regexp.MustCompile(`--([a-z-]+): (#[0-9a-f]{6});`).FindAllStringSubmatch(text, -1) {
			colors[m[1]] = m[2]
		}
		for pair, least := range map[[2]string]float64{
			{"on-sign", "sign"}: 7, {"ink", "floor"}: 7, {"faint", "floor"}: 7,
			{"visits", "floor"}: 3, {"visitors", "floor"}: 3, {"visitors", "visits"}: 3,
		} {
			t.Run(scheme+" "+pair[0]+" on "+pair[1], func(t *testing.T) {
				ratio := contrast(t, colors[pair[0]], colors[pair[1]])
				t.Logf("%.1f", ratio)
				assert.GreaterOrEqual(t, ratio, least)
			})
		}
	}
	assert.NotRegexp(t, `[^-]color: *#|fill: *#|background: *#`, css, "a colour that this test does not see")
	assert.NotContains(t, css, "width: 100vw", "wider than a window with a scroll bar: the page would scroll sideways")
	for _, url := range regexp.MustCompile(`url\(([^)]*)\)`).FindAllStringSubmatch(css, -1) {
		assert.Contains(t, assets, strings.TrimPrefix(url[1], "/assets/"), "a file of our own")
	}
	assert.NotContains(t, css, "@import")
	assert.NotRegexp(t, `--pad: 0\b`, css, "without a unit calc(100% + 2 * var(--pad)) is no length: on paper a long trail has no end")
}

// contrast is WCAG's ratio of two colours such as #1a2b3c.
func contrast(t *testing.T, a, b string) float64 {
	t.Helper()
	luminance := func(color string) float64 {
		require.Len(t, color, 7)
		var sum float64
		for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
			n, err := strconv.ParseUint(color[1+2*i:3+2*i], 16, 8)
			require.NoError(t, err)
			c := float64(n) / 255
			if c <= 0.04045 {
				c /= 12.92
			} else {
				c = math.Pow((c+0.055)/1.055, 2.4)
			}
			sum += weight * c
		}
		return sum
	}
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
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
		{"GET", "/nowhere", 404, "Page not found."},
		{"GET", "/assets/nothing.css", 404, "Page not found."},
		{"POST", "/", 405, "Only GET and HEAD are allowed here."},
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
		assert.Contains(t, read, tt.sentence+" Go to the visitor counter.")
		assert.Contains(t, read, "deployed by Ann.", "to the end")
		for _, absent := range []string{"recognised by your IP", "not be recognised", "counted.", "visited"} {
			assert.NotContains(t, read, absent)
		}
		assert.Equal(t, tt.status == 405, w.Header().Get("Allow") == "GET, HEAD")
	}
	// What a client writes must not pile up in memory with the sentences that are kept.
	kept := func() (n int) { s.page.kept.Range(func(any, any) bool { n++; return true }); return n }
	before := kept()
	for i := range 10 {
		s.ask("GET", fmt.Sprintf("/badge.svg?show=%d", i), "Accept", browser)
	}
	assert.Equal(t, before, kept())
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
		assert.Contains(t, w.Body.String(), `name="description" property="og:description" content="A page that counts its unique visitors exactly: 14,902 visits since `)
		assert.Contains(t, w.Body.String(), `property="og:url" content="http://example.com/"`)
		assert.Contains(t, w.Body.String(), `property="og:image" content="http://example.com/card.png"`)
		assert.Contains(t, pageText(w.Body.String()), "This visit was not counted")
	}
	assert.Equal(t, int64(14902), queryInt(t, s.store.reads, `SELECT visits FROM totals`))
	assert.Contains(t, s.ask("GET", "/", "X-Forwarded-Proto", "https").Body.String(), `content="https://example.com/card.png"`)
	assert.NotContains(t, rendered(t, s.page, nil, greeting{NoDatabase: true}, standing{}), "og:", "without its database")
}

func TestAssets(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, newDatabase(t))
	page := s.ask("GET", "/").Body.String()
	for name, contentType := range map[string]string{
		"style.css": "text/css; charset=utf-8", "favicon.svg": "image/svg+xml", "steps.svg": "image/svg+xml", "face.woff2": "font/woff2",
	} {
		t.Run(name, func(t *testing.T) {
			path := assetPath(name)
			assert.Regexp(t, `^/assets/[a-z]+\.[0-9a-f]{8}\.[a-z0-9]+$`, path)
			linked := page + s.ask("GET", assetPath("style.css")).Body.String()
			assert.Contains(t, linked, path, "by the page or its style")

			w := s.ask("GET", path)
			require.Equal(t, http.StatusOK, w.Code)
			assert.Equal(t, contentType, w.Header().Get("Content-Type"))
			want, err := assetFiles.ReadFile("assets/" + name)
			require.NoError(t, err)
			if name != "style.css" { // has the others' names in it
				assert.Equal(t, string(want), w.Body.String())
			}
			etag := w.Header().Get("ETag")
			assert.Regexp(t, `^"[0-9a-f]{8}"$`, etag)

			w = s.ask("GET", path, "If-None-Match", etag)
			assert.Equal(t, http.StatusNotModified, w.Code)
			assert.Zero(t, w.Body.Len())
			assert.Equal(t, http.StatusOK, s.ask("GET", path, "If-None-Match", `"another"`).Code)
			assert.Equal(t, http.StatusNotModified, s.ask("GET", path, "If-None-Match", `"another", `+etag).Code)
			assert.Equal(t, http.StatusNotModified, s.ask("GET", path, "If-None-Match", "*").Code)
		})
	}
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
	for _, result := range []visitor.Result{visitor.Counted, visitor.Bot, visitor.Embedded, visitor.Ignored, visitor.NoAddress, visitor.Unavailable, visitor.Unconfirmed} {
		for _, source := range []visitor.Source{visitor.FromPeer, visitor.FromForwarded, visitor.FromNobody} {
			noDatabase := result == visitor.Unavailable || result == visitor.Unconfirmed
			text := pageText(rendered(t, s.page, aTally(1), greeting{Result: result, Source: source, NoDatabase: noDatabase}, standing{visits: 3}))
			assert.Equal(t, result == visitor.Counted, strings.Contains(text, "This visit was counted."), "%s", result)
			assert.Equal(t, result == visitor.Unconfirmed, strings.Contains(text, mayBeLost), "%s", result)
			assert.Equal(t, result == visitor.Unavailable, strings.Contains(text, notLost), "%s", result)
			assert.Equal(t, result != visitor.Unavailable && result != visitor.Unconfirmed, strings.Contains(text, "3 times"), "%s", result)
			assert.Equal(t, !noDatabase, strings.Contains(text, "recognised by your IP address") || strings.Contains(text, "could not be recognised"), "%s", source)
		}
	}
}

// The evidence: what agreed is said, what did not or is overdue stands out, and
// without any there is no word of it.
func TestEvidenceOnThePage(t *testing.T) {
	t.Parallel()
	ago := func(days int) time.Time { return monday.AddDate(0, 0, -days).Add(3 * time.Hour) }
	for name, tt := range map[string]struct {
		evidence []evidence
		want     string // of the page's HTML
	}{
		"none":              {nil, "in PostgreSQL 17.2. footfall"},
		"a recount":         {[]evidence{{"recount", true, ago(0)}}, "17.2. The numbers were last recounted on 2 March 2026 and agreed. footfall"},
		"at its due time":   {[]evidence{{"recount", true, ago(2)}}, "17.2. The numbers were last recounted on 28 February 2026 and agreed. footfall"},
		"overdue":           {[]evidence{{"recount", true, ago(3)}}, "17.2. <strong>The numbers were last recounted on 27 February 2026 and agreed; the next time is overdue.</strong> footfall"},
		"a difference":      {[]evidence{{"recount", false, ago(0)}}, "17.2. <strong>The numbers were last recounted on 2 March 2026 and did not agree.</strong> footfall"},
		"both":              {[]evidence{{"recount", true, ago(1)}, {"restore", true, ago(9)}}, "17.2. The numbers were last recounted on 1 March 2026 and agreed. A backup was last restored on 21 February 2026 and agreed. footfall"},
		"a restore overdue": {[]evidence{{"restore", true, ago(10)}}, "17.2. <strong>A backup was last restored on 20 February 2026 and agreed; the next time is overdue.</strong> footfall"},
		"a restore differs": {[]evidence{{"restore", false, ago(1)}}, "17.2. <strong>A backup was last restored on 1 March 2026 and did not agree.</strong> footfall"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			count := aTally(1)
			count.evidence = tt.evidence
			body := rendered(t, &page{version: "1.2.3", userName: "Ann"}, count, greeting{Result: visitor.Counted, Source: visitor.FromPeer}, standing{1, 1})
			assert.Contains(t, body, tt.want)
		})
	}
}
