package main

import (
	"fmt"
	"html"
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

// aTally has visits on its last days, the last number today's.
func aTally(visits ...int64) *tally {
	t := &tally{since: monday.AddDate(-1, 0, 0), database: "PostgreSQL 17.2"}
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

// rendered is the page for a visitor who was counted number times; tl is nil
// without a database.
func rendered(t *testing.T, p *page, tl *tally, y you, number int64) string {
	t.Helper()
	w := httptest.NewRecorder()
	require.NoError(t, p.render(tl).write(w, http.StatusOK, y, number))
	return w.Body.String()
}

var (
	anyTag    = regexp.MustCompile(`<[^>]*>`)
	someSpace = regexp.MustCompile(`\s+`)
)

// pageText is what a reader sees of a page, on one line.
func pageText(body string) string {
	text := html.UnescapeString(someSpace.ReplaceAllString(anyTag.ReplaceAllString(body, " "), " "))
	return strings.TrimSpace(strings.ReplaceAll(text, " .", "."))
}

func TestPageStates(t *testing.T) {
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
			aTally(), you{Result: isBot, Source: fromPeer}, 0,
			[]string{
				"You have not been counted on this page.",
				"This visit was not counted: your browser calls itself a bot, crawler, spider, monitor or link preview. Recognised by your direct address.",
				"0 visitors 0 visits 0 visits today", "no visit on any of these days", "today, 2 Mar: 0",
			},
			[]string{"most:", "This visit was counted"},
		},
		"the first visit": {
			&tally{visits: 1, visitors: 1, days: aTally(1).days, since: monday, database: "PostgreSQL 17.2"},
			you{Result: counted, Source: fromPeer}, 1,
			[]string{
				"You have visited this page 1 time.", "This visit was counted. Recognised by your direct address.",
				"1 visitor 1 visit 1 visit today", "most: 1 today", "today, 2 Mar: 1", "1 visit in 30 days, as a table",
				"Counting since 2 March 2026 in PostgreSQL 17.2. footfall 1.2.3, deployed by Ann.",
			},
			[]string{"1 times", "1 visits", "1 visitors", "no visit on any"},
		},
		"thirty days": {
			month, you{Result: counted, Source: fromForwarded}, 12,
			[]string{
				"You have visited this page 12 times.",
				"This visit was counted. Recognised by the address that a trusted proxy forwarded.",
				"141 visits in 30 days", "7 visits today", "1 Feb", "most: 9 on 6 Feb", "today, 2 Mar: 7",
				"Day (UTC) Visits Visitors New 1 Feb 3 2 1 2 Feb 1 1 0",
			},
			[]string{"12 time."},
		},
		"a day of none": {
			aTally(2, 0, 0), you{Result: isPrefetch, Source: fromPeer}, 2,
			[]string{
				"You have visited this page 2 times.", "0 visits today", "most: 2 on 28 Feb", "today, 2 Mar: 0",
				"This visit was not counted: your browser fetched the page ahead of time.",
			}, nil,
		},
		"millions": {
			million, you{Result: counted, Source: fromPeer}, 1_234_567,
			[]string{"You have visited this page 1,234,567 times.", "7,654,321 visitors 91,234,567 visits 1,234,567 visits today", "most: 1,234,567 today"}, nil,
		},
		"no address": {
			month, you{Result: noAddress, Source: fromNobody}, 0,
			[]string{"This visit was not counted. Not recognised: the proxy in front of this page does not say who you are."}, []string{"Recognised by"},
		},
		"no database": {
			nil, you{Result: unconfirmed, Source: fromPeer, NoDatabase: true}, 0,
			[]string{"The database does not answer.", "Your visit may not have been counted. Please come back in a moment.", "footfall 1.2.3, deployed by Ann."},
			[]string{"visits today", "Counting since", "was counted."},
		},
		"no database, not asked": {
			nil, you{Result: unavailable, Source: fromPeer, NoDatabase: true}, 0,
			[]string{"The database does not answer.", "Your visit was not counted. Please come back in a moment."},
			[]string{"Your visit may"},
		},
		"no database, not counted": {
			nil, you{Result: isBot, Source: fromPeer, NoDatabase: true}, 0,
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
	for number, strides := range map[int64]int{1: 1, 2: 2, 39: 39, 40: 40, 1_000_000: 40} {
		body := rendered(t, &page{}, aTally(1), you{Result: counted}, number)
		assert.Contains(t, body, fmt.Sprintf(`viewBox="0 0 %d 40"`, strides*40), number)
	}
	assert.NotContains(t, rendered(t, &page{}, aTally(1), you{Result: isBot}, 0), "trail")
}

// What is kept of one page must not show on the next.
func TestPageFollowsTheCount(t *testing.T) {
	p := &page{}
	read := func(tl *tally, y you, number int64) string { return pageText(rendered(t, p, tl, y, number)) }
	first := read(aTally(5, 3), you{Result: counted, Source: fromPeer}, 2)
	assert.Contains(t, first, "1 Mar 5 3 2 2 Mar 3 2 1")
	assert.Contains(t, first, "this page 2 times")
	late := read(aTally(6, 4), you{Result: counted, Source: fromForwarded}, 3) // a visit of yesterday came late
	assert.Contains(t, late, "1 Mar 6 3 3 2 Mar 4 2 2")
	assert.Contains(t, late, "this page 3 times")
	assert.Contains(t, late, "trusted proxy")
}

func TestPageNamesWhoDeployedIt(t *testing.T) {
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
			body := rendered(t, &page{userName: tt.name, userURL: tt.url}, aTally(1), you{Result: counted}, 1)
			assert.Contains(t, body, tt.want)
			assert.NotContains(t, body, "<script")
		})
	}
}

func TestChart(t *testing.T) {
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
	for n, want := range map[int64]string{0: "visits", 1: "visit", 2: "visits", 11: "visits", 1001: "visits"} {
		assert.Equal(t, want, plural(group(n), "visit"), n)
	}
}

// The first view is the page, its style sheet and its icon.
func TestPageSize(t *testing.T) {
	var visits []int64
	for i := range historyDays {
		visits = append(visits, 100_000+int64(i)) // each number as long as a busy page's
	}
	body := rendered(t, &page{userName: "Ann", userURL: "https://example.org/"}, aTally(visits...), you{Result: counted, Source: fromForwarded}, 123_456)
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
