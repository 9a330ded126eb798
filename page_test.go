package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"footfall/internal/visitor"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

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
		tally  *tally
		you    you
		number int64
		want   []string // in what is read
		absent []string
	}{
		"before the first visit": {
			aTally(), you{Result: visitor.Bot, Source: visitor.FromPeer}, 0,
			[]string{
				"You have not been counted on this page.",
				"This visit was not counted: your browser identifies itself as a program, such as a bot, monitor or link preview. Recognised by your direct address.",
				"0 visitors 0 visits 0 visits today", "no visit on any of these days", "today, 2 Mar: 0",
			},
			[]string{"most:", "This visit was counted"},
		},
		"the first visit": {
			&tally{visits: 1, visitors: 1, days: aTally(1).days, background: background{since: monday, database: "PostgreSQL 17.2"}},
			you{Result: visitor.Counted, Source: visitor.FromPeer}, 1,
			[]string{
				"You have visited this page 1 time.", "This visit was counted. Recognised by your direct address.",
				"1 visitor 1 visit 1 visit today", "most: 1 today", "today, 2 Mar: 1", "1 visit in 30 days, as a table",
				"Counting since 2 March 2026 in PostgreSQL 17.2. footfall 1.2.3, deployed by Ann.",
			},
			[]string{"1 times", "1 visits", "1 visitors", "no visit on any"},
		},
		"thirty days": {
			month, you{Result: visitor.Counted, Source: visitor.FromForwarded}, 12,
			[]string{
				"You have visited this page 12 times.",
				"This visit was counted. Recognised by the address that a trusted proxy forwarded.",
				"141 visits in 30 days", "7 visits today", "1 Feb", "most: 9 on 6 Feb", "today, 2 Mar: 7",
				"Day (UTC) Visits Visitors New 1 Feb 3 2 1 2 Feb 1 1 0",
			},
			[]string{"12 time."},
		},
		"a day of none": {
			aTally(2, 0, 0), you{Result: visitor.Ignored, Source: visitor.FromPeer}, 2,
			[]string{
				"You have visited this page 2 times.", "0 visits today", "most: 2 on 28 Feb", "today, 2 Mar: 0",
				"This visit was not counted: visits from your network are excluded.",
			}, nil,
		},
		"millions": {
			million, you{Result: visitor.Counted, Source: visitor.FromPeer}, 1_234_567,
			[]string{"You have visited this page 1,234,567 times.", "7,654,321 visitors 91,234,567 visits 1,234,567 visits today", "most: 1,234,567 today"}, nil,
		},
		"no address": {
			month, you{Result: visitor.NoAddress, Source: visitor.FromNobody}, 0,
			[]string{"This visit was not counted. Not recognised: the proxy in front of this page does not say who you are."}, []string{"Recognised by"},
		},
		"no database": {
			nil, you{Result: unconfirmed, Source: visitor.FromPeer, NoDatabase: true}, 0,
			[]string{"The database does not answer.", "Your visit may not have been counted. Please come back in a moment.", "footfall 1.2.3, deployed by Ann."},
			[]string{"visits today", "Counting since", "was counted."},
		},
		"no database, not asked": {
			nil, you{Result: unavailable, Source: visitor.FromPeer, NoDatabase: true}, 0,
			[]string{"The database does not answer.", "Your visit was not counted. Please come back in a moment."},
			[]string{"Your visit may"},
		},
		"no database, not counted": {
			nil, you{Result: visitor.Bot, Source: visitor.FromPeer, NoDatabase: true}, 0,
			[]string{"The database does not answer.", "The numbers are back as soon as it is.", "This visit was not counted"},
			[]string{"Your visit may"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			body := rendered(t, &page{version: "1.2.3", userName: "Ann"}, tt.tally, tt.you, tt.number)
			read := pageText(body)
			for _, want := range append(tt.want, "What is a visitor here?", "What is kept?") {
				assert.Contains(t, read, want)
			}
			for _, absent := range tt.absent {
				assert.NotContains(t, read, absent)
			}
			if tt.number > 0 {
				assert.Contains(t, body, fmt.Sprintf("You have visited this page <strong>%s</strong> time", group(tt.number)))
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
	for number, strides := range map[int64]int{1: 1, 2: 2, 39: 39, 40: 40, 1_000_000: 40} {
		body := rendered(t, &page{}, aTally(1), you{Result: visitor.Counted}, number)
		assert.Contains(t, body, fmt.Sprintf(`viewBox="0 0 %d 40"`, strides*40), number)
	}
	assert.NotContains(t, rendered(t, &page{}, aTally(1), you{Result: visitor.Bot}, 0), "trail")
}

// What is kept of one page must not show on the next.
func TestPageFollowsTheCount(t *testing.T) {
	t.Parallel()
	p := &page{}
	read := func(tl *tally, y you, number int64) string { return pageText(rendered(t, p, tl, y, number)) }
	first := read(aTally(5, 3), you{Result: visitor.Counted, Source: visitor.FromPeer}, 2)
	assert.Contains(t, first, "1 Mar 5 3 2 2 Mar 3 2 1")
	assert.Contains(t, first, "this page 2 times")
	late := read(aTally(6, 4), you{Result: visitor.Counted, Source: visitor.FromForwarded}, 3) // a visit of yesterday came late
	assert.Contains(t, late, "1 Mar 6 3 3 2 Mar 4 2 2")
	assert.Contains(t, late, "this page 3 times")
	assert.Contains(t, late, "trusted proxy")
}

func TestPageNamesWhoDeployedIt(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ name, url, want string }{
		"link":        {"Ann", "https://example.org/?a=1&b=2", `<a href="https://example.org/?a=1&amp;b=2"><bdi>Ann</bdi></a>.`},
		"mail":        {"Ann", "mailto:ann@example.org", `<a href="mailto:ann@example.org"><bdi>Ann</bdi></a>.`},
		"no link":     {"n/a", "", `deployed by <bdi>n/a</bdi>.`},
		"right left":  {"مريم", "", `<bdi>مريم</bdi>.`},
		"hostile":     {`"><script>alert(1)</script>`, `https://example.org/"onclick="x`, `<a href="https://example.org/%22onclick=%22x"><bdi>&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;</bdi></a>.`},
		"script link": {"Ann", "javascript:alert(1)", `<a href="#ZgotmplZ"><bdi>Ann</bdi></a>.`}, // the settings refuse it before
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			body := rendered(t, &page{userName: tt.name, userURL: tt.url}, aTally(1), you{Result: visitor.Counted}, 1)
			assert.Contains(t, body, tt.want)
			assert.NotContains(t, body, "<script")
		})
	}
}

func TestChart(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		visits []int64
		path   string
		today  string
		maxX   int
		anchor string
	}{
		"none":                   {nil, "", "", 0, "start"},
		"today alone":            {[]int64{5}, "", "M290 100v-100h8v100z", 100, "end"},
		"the day before":         {[]int64{4, 2}, "M280 100v-100h8v100z", "M290 100v-50h8v50z", 96, "end"},
		"a day of none":          {[]int64{4, 0, 1}, "M270 100v-100h8v100z", "M290 100v-25h8v25z", 93, "end"},
		"one among many is seen": {[]int64{1, 1_000_000}, "M280 100v-1h8v1z", "M290 100v-100h8v100z", 100, "end"},
		"beyond 32 bits":         {[]int64{1 << 62, 1 << 61}, "M280 100v-100h8v100z", "M290 100v-50h8v50z", 96, "end"},
		"the first of equals":    {append([]int64{7}, make([]int64, 28)...), "M10 100v-100h8v100z", "", 3, "start"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := newChart(aTally(tt.visits...).days)
			assert.Equal(t, tt.path, c.Path)
			assert.Equal(t, tt.today, c.TodayPath)
			assert.Equal(t, tt.maxX, c.MaxX)
			assert.Equal(t, tt.anchor, c.MaxAnchor)
		})
	}
}

func TestPlural(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "visits", 1: "visit", 2: "visits", 11: "visits", 1001: "visits"} {
		assert.Equal(t, want, plural(group(n), "visit"), n)
	}
}

// The first view is the page, its style sheet and its icon.
func TestPageSize(t *testing.T) {
	t.Parallel()
	var visits []int64
	for i := range historyDays {
		visits = append(visits, 100_000+int64(i)) // each number as long as a busy page's
	}
	body := rendered(t, &page{userName: "Ann", userURL: "https://example.org/"}, aTally(visits...), you{Result: visitor.Counted, Source: visitor.FromForwarded}, 123_456)
	sum := len(body)
	for _, file := range assets {
		sum += len(file.plain)
	}
	t.Logf("page %d bytes, first view %d bytes", len(body), sum)
	assert.Len(t, assets, 2)
	assert.Less(t, len(body), 5<<10)
	assert.Less(t, sum, 15<<10)
}

// Every text colour on its ground: 4.5 to 1 is WCAG 2.2 AA (1.4.3).
// The bars carry meaning without being text; 3 to 1 would do (1.4.11).
func TestPageContrast(t *testing.T) {
	t.Parallel()
	var css string
	for _, file := range assets {
		if strings.HasPrefix(file.contentType, "text/css") {
			css = string(file.plain)
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
		for _, pair := range [][2]string{
			{"on-sign", "sign"}, {"ink", "floor"}, {"faint", "floor"}, {"bar", "floor"}, {"today", "floor"},
		} {
			t.Run(scheme+" "+pair[0], func(t *testing.T) {
				ratio := contrast(t, colors[pair[0]], colors[pair[1]])
				t.Logf("%.1f", ratio)
				assert.GreaterOrEqual(t, ratio, 4.5)
			})
		}
		// Today's bar is beside the others.
		assert.GreaterOrEqual(t, contrast(t, colors["today"], colors["bar"]), 2.0)
	}
	assert.NotRegexp(t, `[^-]color: *#|fill: *#|background: *#`, css, "a colour that this test does not see")
	assert.NotContains(t, css, "width: 100vw", "wider than a window with a scroll bar: the page would scroll sideways")
	assert.NotContains(t, css, "url(")
	assert.NotContains(t, css, "@import")
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
	for _, result := range []visitor.Result{visitor.Counted, visitor.Bot, visitor.Embedded, visitor.Ignored, visitor.NoAddress, unavailable, unconfirmed} {
		for _, source := range []visitor.Source{visitor.FromPeer, visitor.FromForwarded, visitor.FromNobody} {
			w := httptest.NewRecorder()
			p := s.page.render(nil)
			require.NoError(t, p.write(w, http.StatusOK, you{Result: result, Source: source, NoDatabase: result == unavailable || result == unconfirmed}, 3))
			text := pageText(w.Body.String())
			assert.Equal(t, result == visitor.Counted, strings.Contains(text, "This visit was counted."), "%s", result)
			assert.Equal(t, result == unconfirmed, strings.Contains(text, mayBeLost), "%s", result)
			assert.Equal(t, result == unavailable, strings.Contains(text, notLost), "%s", result)
			assert.Equal(t, result != unavailable && result != unconfirmed, strings.Contains(text, "3 times"), "%s", result)
			assert.Equal(t, 1, bytes.Count([]byte(text), []byte("ecognised")), "%s", source)
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
			body := rendered(t, &page{version: "1.2.3", userName: "Ann"}, count, you{Result: visitor.Counted, Source: visitor.FromPeer}, 1)
			assert.Contains(t, body, tt.want)
		})
	}
}
