package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"footfall/internal/picture"
	"footfall/internal/visitor"
)

// resource is what a GET of a fixed path answers. None counts a visit.
type resource struct {
	path, contentType, cache string
	open                     bool     // for pages and scripts of other sites
	shows                    []string // values of the query parameter show, the default first; any other is refused
	body                     body
}

// body returns the body of the answer; show is one of the resource's shows.
type body func(ctx context.Context, show string) ([]byte, error)

func (s *server) resources() []resource {
	const (
		text = "text/plain; charset=utf-8"
		json = "application/json"
		svg  = "image/svg+xml"

		noStore   = "no-store"
		oneMinute = "public, max-age=60" // how old a number may be that an image proxy shows
	)
	shows := []string{"visitors", "visits", "today"}
	return []resource{
		{"/version", json, noStore, false, nil, s.version},
		{"/healthz", text, noStore, false, nil, s.healthz},
		{"/readyz", text, noStore, false, nil, s.readyz},
		{"/metrics", "text/plain; version=0.0.4; charset=utf-8", noStore, false, nil, s.showMetrics},
		{"/days", htmlType, noStore, false, nil, s.live(daysTable)},
		{"/api/stats", json, noStore, true, nil, s.live(statsJSON)},
		{"/api/stats.csv", "text/csv; charset=utf-8", oneMinute, true, nil, s.statsCSV},
		{"/badge.json", json, oneMinute, true, shows, s.live(badgeJSON)},
		{"/badge.svg", svg, oneMinute, true, shows, s.picture(badgeSVG)},
		{"/chart.svg", svg, oneMinute, true, nil, s.picture(chartSVG)},
		{"/card.png", "image/png", oneMinute, true, nil, s.picture(cardPNG)},
		{"/robots.txt", text, oneMinute, false, nil, file("robots.txt")},
		{"/favicon.ico", "image/vnd.microsoft.icon", oneMinute, false, nil, file("favicon.ico")},
		{"/.well-known/security.txt", text, oneMinute, false, nil, s.securityTxt},
	}
}

func (res resource) answer(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	if res.open {
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	}
	show := ""
	if len(res.shows) > 0 {
		query, err := url.ParseQuery(r.URL.RawQuery)
		show = cmp.Or(query.Get("show"), res.shows[0])
		if err != nil || !slices.Contains(res.shows, show) {
			return &publicError{http.StatusBadRequest, fmt.Sprintf("show must be one of: %s.", strings.Join(res.shows, ", "))}
		}
	}
	body, err := res.body(r.Context(), show)
	h.Set("Cache-Control", res.cache)
	if errors.Is(err, errDrawn) {
		h.Set("Cache-Control", "public, max-age="+retryAfter)
	} else if err != nil {
		return err
	}
	if _, style, found := bytes.Cut(body, []byte("<style>")); found {
		// In a window of its own a picture is under the page's policy: its style is named.
		style, _, _ = bytes.Cut(style, []byte("</style>"))
		sum := sha256.Sum256(style)
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'; frame-ancestors 'none'")
	}
	write(w, http.StatusOK, res.contentType, body)
	return nil
}

// file is the body of an embedded file.
func file(name string) body {
	return func(context.Context, string) ([]byte, error) { return assetFiles.ReadFile("assets/" + name) }
}

// live adapts a function of the current tally to a body.
func (s *server) live(of func(t *tally, show string) ([]byte, error)) body {
	return func(ctx context.Context, show string) ([]byte, error) {
		t, _, err := s.look(ctx, visitor.ID{})
		if err != nil {
			return nil, err
		}
		return of(t, show)
	}
}

// errDrawn comes with a picture that says that the database is away.
var errDrawn = errors.New("the database is away, and the picture says so")

// picture is live for what another page embeds: without the database it is drawn
// of no tally, with [errDrawn].
func (s *server) picture(of func(t *tally, show string) ([]byte, error)) body {
	return func(ctx context.Context, show string) ([]byte, error) {
		t, _, err := s.look(ctx, visitor.ID{})
		if err == nil {
			return of(t, show)
		}
		body, err := of(nil, show)
		return body, cmp.Or(err, errDrawn)
	}
}

// daysTable is the page's chart as a table.
func daysTable(t *tally, _ string) ([]byte, error) {
	type row struct{ Day, Visits, Visitors, New string }
	var rows []row
	for _, d := range t.days {
		rows = append(rows, row{picture.ShortDate(d.date), group(d.visits), group(d.visitors), group(d.newVisitors)})
	}
	return renderTemplate("days", rows)
}

// version says what runs here.
func (s *server) version(context.Context, string) ([]byte, error) { return indentedJSON(s.build) }

// healthz is liveness: that this process answers at all. It must not ask the
// database: restarting the program would not fix that.
func (s *server) healthz(context.Context, string) ([]byte, error) { return []byte("ok\n"), nil }

func statsJSON(t *tally, _ string) ([]byte, error) {
	type jsonDay struct {
		Day         string `json:"day"`
		Visits      int64  `json:"visits"`
		Visitors    int64  `json:"visitors"`
		NewVisitors int64  `json:"new_visitors"`
	}
	days := []jsonDay{}
	for _, d := range t.days {
		days = append(days, jsonDay{d.date.Format(time.DateOnly), d.visits, d.visitors, d.newVisitors})
	}
	type jsonCheck struct {
		At     time.Time `json:"at"`
		Agreed bool      `json:"agreed"`
		Says   string    `json:"says"`
	}
	checks := map[string]*jsonCheck{} // by kind
	for _, e := range t.evidence {
		checks[e.Kind] = &jsonCheck{e.At.UTC().Truncate(time.Second), e.Agreed, newSentence(e, t.today().date).Text}
	}
	return indentedJSON(struct {
		Visits   int64     `json:"visits"`
		Visitors int64     `json:"visitors"`
		Today    jsonDay   `json:"today"`
		Days     []jsonDay `json:"days"` // the last 30, oldest first
		Since    time.Time `json:"since"`

		CarriedVisits   int64      `json:"carried_over_visits,omitempty"` // part of visits, from an earlier counter
		CarriedVisitors int64      `json:"carried_over_visitors,omitempty"`
		Recount         *jsonCheck `json:"recount,omitempty"` // the last one; absent: none was recorded
		Restore         *jsonCheck `json:"restore,omitempty"` // of a backup, likewise
	}{
		t.visits, t.visitors, days[len(days)-1], days, t.since.UTC().Truncate(time.Second),
		t.carriedVisits, t.carriedVisitors, checks["recount"], checks["restore"],
	})
}

// statsCSV is every day as CSV.
func (s *server) statsCSV(ctx context.Context, _ string) (csv []byte, err error) {
	err = s.read(ctx, func(ctx context.Context) (err error) {
		csv, err = s.store.daysCSV(ctx, utcDay(s.now()))
		return err
	})
	return csv, err
}

// badge is one number and what it counts.
type badge struct {
	Schema int    `json:"schemaVersion"` // of a Shields endpoint badge: always 1 (shields.io/badges/endpoint-badge)
	Label  string `json:"label"`
	Number string `json:"message"`
	Color  string `json:"color"`
}

// newBadge returns the badge of a tally, or of none.
func newBadge(t *tally, show string) badge {
	label := map[string]string{"visitors": "visitors", "visits": "visits", "today": "visits today"}[show]
	if t == nil {
		return badge{1, label, "unavailable", "#9f9f9f"}
	}
	number := map[string]int64{"visitors": t.visitors, "visits": t.visits, "today": t.today().visits}[show]
	return badge{1, label, group(number), "#ffc533"}
}

func badgeJSON(t *tally, show string) ([]byte, error) { return indentedJSON(newBadge(t, show)) }

// badgeSVG is the badge as Shields would draw it: both texts in Verdana of 11
// pixels, with 5 on each side.
func badgeSVG(t *tally, show string) ([]byte, error) {
	b := newBadge(t, show)
	label, number := wordWidths[b.Label], verdanaWidth(b.Number)
	if t == nil {
		number = wordWidths[b.Number]
	}
	return renderTemplate("badge.svg", map[string]any{
		"Badge": b, "Label": label, "Number": number, "Split": label + 10, "Right": number + 10, "Width": label + number + 20,
		"LabelMiddle": float64(label)/2 + 5, "NumberMiddle": float64(label) + float64(number)/2 + 15,
	})
}

// wordWidths are the widths of our words in pixels, as Shields rounds them: down,
// then up to an odd number.
var wordWidths = map[string]int{"visitors": 39, "visits": 29, "visits today": 63, "unavailable": 63}

// verdanaWidth returns the same of a number. The advances are Verdana's, of a
// digit and a comma, for 2,048 units.
func verdanaWidth(number string) int {
	commas := strings.Count(number, ",")
	return ((len(number)-commas)*1302+commas*745)*11/2048 | 1
}

// chartSVG is the page's chart, with its numbers, for other pages.
func chartSVG(t *tally, _ string) ([]byte, error) {
	if t == nil {
		return renderTemplate("chart.svg", nil)
	}
	return renderTemplate("chart.svg", newChart(t))
}

// cardPNG is the picture in a link's preview.
func cardPNG(t *tally, _ string) ([]byte, error) {
	if t == nil {
		return picture.Card("")
	}
	return picture.Card(group(t.visitors))
}

// securityTxt says where to report a weakness (RFC 9116): at USER_URL, unless
// that is plain http, which section 2.5.3 forbids.
func (s *server) securityTxt(context.Context, string) ([]byte, error) {
	if scheme, _, _ := strings.Cut(s.cfg.UserURL, ":"); scheme == "" || strings.EqualFold(scheme, "http") {
		return nil, errNotFound
	}
	expires := utcDay(s.now()).AddDate(0, 1, 0) // required by section 2.5.5
	return fmt.Appendf(nil, "Contact: %s\nExpires: %s\n", s.cfg.UserURL, expires.Format(time.RFC3339)), nil
}

// showMetrics writes the build, the metrics and the statistics of the pools.
func (s *server) showMetrics(context.Context, string) ([]byte, error) {
	var buf bytes.Buffer
	p := printer{&buf}
	p.family("footfall_build_info", "gauge", "What runs here; always 1.")
	p.value("footfall_build_info", labels("version", s.build.Version, "commit", s.build.Commit, "goversion", s.build.Go), 1)
	s.metrics.writeTo(p)
	var open, inUse, idle int
	var wait time.Duration
	for _, db := range []*sql.DB{s.store.reads, s.store.batches, s.store.probes} {
		stats := db.Stats()
		open, inUse, idle, wait = open+stats.OpenConnections, inUse+stats.InUse, idle+stats.Idle, wait+stats.WaitDuration
	}
	p.family("footfall_database_connections", "gauge", "Connections to the database.")
	p.value("footfall_database_connections", labels("state", "open"), float64(open))
	p.value("footfall_database_connections", labels("state", "in_use"), float64(inUse))
	p.value("footfall_database_connections", labels("state", "idle"), float64(idle))
	p.single("footfall_database_wait_seconds_total", "counter", "Time that requests waited for a connection.", wait.Seconds())
	return buf.Bytes(), nil
}

func indentedJSON(v any) ([]byte, error) {
	body, err := json.MarshalIndent(v, "", "  ")
	return append(body, '\n'), err
}

// asset answers with an embedded file by its fingerprinted name.
func asset(w http.ResponseWriter, r *http.Request) error {
	file, ok := assets[r.PathValue("file")]
	if !ok {
		return errNotFound
	}
	h := w.Header()
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Content-Type", file.contentType)
	h.Set("ETag", file.etag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(file.body)) // answers If-None-Match
	return nil
}
