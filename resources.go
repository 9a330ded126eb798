package main

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"footfall/internal/visitor"
	"net/http"
	"slices"
	"strings"
	"time"
)

// resource is what a GET of a fixed path answers. None counts a visit.
type resource struct {
	path, contentType, cache string
	param                    string   // the query parameter that it reads
	values                   []string // of param, the default first; any other is refused
	body                     func(ctx context.Context, value string) ([]byte, error)
}

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
		{"/version", json, noStore, "", nil, s.version},
		{"/healthz", text, noStore, "", nil, s.healthz},
		{"/readyz", text, noStore, "", nil, s.readyz},
		{"/metrics", "text/plain; version=0.0.4; charset=utf-8", noStore, "", nil, s.showMetrics},
		{"/api/stats", json, noStore, "", nil, s.live(statsJSON)},
		{"/api/stats.csv", "text/csv; charset=utf-8", oneMinute, "", nil, s.statsCSV},
		{"/badge.svg", svg, oneMinute, "show", shows, s.live(badgeSVG)},
		{"/badge.json", json, oneMinute, "show", shows, s.live(badgeJSON)},
		{"/chart.svg", svg, oneMinute, "theme", []string{"light", "dark"}, s.live(chartSVG)},
		{"/robots.txt", text, oneMinute, "", nil, file("robots.txt")},
		{"/favicon.ico", "image/vnd.microsoft.icon", oneMinute, "", nil, file("favicon.ico")},
		{"/.well-known/security.txt", text, oneMinute, "", nil, s.securityTxt},
	}
}

func (res resource) answer(w http.ResponseWriter, r *http.Request) error {
	value := ""
	if len(res.values) > 0 {
		value = cmp.Or(r.URL.Query().Get(res.param), res.values[0])
		if !slices.Contains(res.values, value) {
			return &publicError{http.StatusBadRequest, fmt.Sprintf("%s must be one of: %s.", res.param, strings.Join(res.values, ", "))}
		}
	}
	body, err := res.body(r.Context(), value)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", res.cache)
	write(w, http.StatusOK, res.contentType, body)
	return nil
}

// file is the body of an embedded file.
func file(name string) func(context.Context, string) ([]byte, error) {
	return func(context.Context, string) ([]byte, error) { return assetFiles.ReadFile("assets/" + name) }
}

// live is the body of what shows the count of the moment.
func (s *server) live(show func(t *tally, value string) ([]byte, error)) func(context.Context, string) ([]byte, error) {
	return func(ctx context.Context, value string) ([]byte, error) {
		t, _, err := s.look(ctx, visitor.ID{})
		if err != nil {
			return nil, err
		}
		return show(t, value)
	}
}

// version says what runs here.
func (s *server) version(context.Context, string) ([]byte, error) { return indentedJSON(s.build) }

// healthz is liveness: that this process answers at all. It must not ask the
// database: restarting the program would not mend that.
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
}

func newBadge(t *tally, show string) badge {
	switch show {
	case "visits":
		return badge{1, "visits", group(t.visits)}
	case "today":
		return badge{1, "visits today", group(t.today().visits)}
	}
	return badge{1, "visitors", group(t.visitors)}
}

func badgeJSON(t *tally, show string) ([]byte, error) { return indentedJSON(newBadge(t, show)) }

// badgeSVG is the badge as a picture. Its widths fit type of 11 pixels, in
// which a letter is 5 wide and a bold digit 8.
func badgeSVG(t *tally, show string) ([]byte, error) {
	b := newBadge(t, show)
	label, number := 6*len(b.Label)+12, 7*len(b.Number)+20
	return renderTemplate("badge.svg", map[string]any{
		"Badge": b, "Label": label, "Width": label + number, "NumberWidth": number,
		"LabelMiddle": label / 2, "NumberMiddle": label + number/2,
	})
}

// chartSVG is the page's chart without its words.
func chartSVG(t *tally, theme string) ([]byte, error) {
	return renderTemplate("chart.svg", map[string]any{"Chart": newChart(t.days), "Today": newRow(t.today()), "Dark": theme == "dark"})
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

// showMetrics adds to the metrics what others know.
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
