package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"
)

// server answers requests. Everything in it is safe for concurrent use.
type server struct {
	cfg      config
	build    build
	store    *store
	counter  atomic.Pointer[counter] // nil: the database is not prepared yet
	counting chan struct{}           // closed when there is a counter
	page     *page
	metrics  *metrics
	log      *slog.Logger
	schema   int         // version of the schema that this program needs
	draining atomic.Bool // shutdown has begun
	now      func() time.Time
}

// counter is what it takes to count a visit.
type counter struct {
	hasher   hasher
	recorder *recorder
}

func newServer(cfg config, log *slog.Logger) *server {
	b := thisBuild()
	return &server{
		cfg: cfg, build: b, store: openStore(cfg.Database), counting: make(chan struct{}),
		page:    &page{version: b.Version, userName: cfg.UserName, userURL: cfg.UserURL},
		metrics: newMetrics(), log: log, schema: len(ourMigrations()), now: time.Now,
	}
}

// Longest waits for the database.
const (
	readTimeout  = 1800 * time.Millisecond // of everything that reads: like visitTimeout
	readyTimeout = time.Second
	startTimeout = time.Second // of a request for the page that comes before the database is prepared
)

// routes is the whole URL space.
func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", s.try(s.index))
	mux.Handle("GET /version", s.try(s.version))
	mux.Handle("GET /healthz", s.try(s.healthz))
	mux.Handle("GET /readyz", s.try(s.readyz))
	mux.Handle("GET /api/stats", s.try(s.stats))
	mux.Handle("GET /badge.svg", s.try(s.badge))
	mux.Handle("GET /metrics", s.try(s.showMetrics))
	mux.Handle("GET /assets/{file}", s.try(s.asset))
	// Directly around the mux: r.Pattern is seen only on the same request.
	return s.observed(s.secured(mux))
}

// index counts the visit and shows the page.
func (s *server) index(w http.ResponseWriter, r *http.Request) error {
	addr, from := clientAddr(r, s.cfg.TrustedProxies)
	y := you{Result: notCounted(r), Source: from}
	if y.Result == counted && from == fromNobody {
		y.Result = noAddress
	}
	status := http.StatusOK
	number, everyone, err := s.visit(r.Context(), addr, y.Result == counted)
	if err != nil {
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", retryAfter)
		y.NoDatabase = true
		if y.Result == counted {
			y.Result = unconfirmed
			if errors.Is(err, errNotCounted) {
				y.Result = unavailable
			}
		}
		everyone = s.page.render(nil)
	}
	s.metrics.visit(y.Result, from, scope(addr))
	return everyone.write(w, status, y, number)
}

var errStarting = fmt.Errorf("%w: the database is not prepared yet", errNotCounted)

// visit counts a visit of addr, or only looks, and returns the visitor's number
// and the page.
func (s *server) visit(ctx context.Context, addr netip.Addr, count bool) (int64, *everyone, error) {
	// A service that was killed and started again answers its first requests a
	// little later, not with an error.
	select {
	case <-s.counting:
	case <-ctx.Done():
	case <-time.After(startTimeout):
	}
	c := s.counter.Load()
	if c == nil {
		return 0, nil, errStarting
	}
	var id visitorID
	if addr.IsValid() {
		id = c.hasher.visitor(addr)
	}
	if !count {
		t, number, err := s.look(ctx, id)
		if err != nil {
			return 0, nil, err
		}
		return number, s.page.render(t), nil
	}
	v, err := c.recorder.record(id)
	if err != nil {
		return 0, nil, err
	}
	s.metrics.saw(v.receipt.visits, v.receipt.visitors)
	return v.number(), v.share(func() any { return s.page.render(&v.receipt.tally) }).(*everyone), nil
}

// look reads what the page shows to a visitor who is not counted.
func (s *server) look(ctx context.Context, id visitorID) (*tally, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	t, number, err := s.store.look(ctx, utcDay(s.now()), id[:])
	if err != nil {
		s.log.WarnContext(ctx, "totals not read", "err", err)
		return nil, 0, err
	}
	s.metrics.saw(t.visits, t.visitors)
	return t, number, nil
}

// version says what runs here.
func (s *server) version(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "no-store")
	return writeJSON(w, s.build)
}

// healthz is liveness: that this process answers at all. It must not ask the
// database: restarting the program would not mend that.
func (s *server) healthz(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "no-store")
	write(w, http.StatusOK, "text/plain; charset=utf-8", []byte("ok\n"))
	return nil
}

// readyz is readiness: that a visit would be counted now.
func (s *server) readyz(w http.ResponseWriter, r *http.Request) error {
	err := s.ready(r.Context())
	s.metrics.ready(err == nil)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	write(w, http.StatusOK, "text/plain; charset=utf-8", []byte("ready\n"))
	return nil
}

func (s *server) ready(ctx context.Context) error {
	if s.draining.Load() {
		return &publicError{http.StatusServiceUnavailable, "shutting down"}
	}
	c := s.counter.Load()
	if c == nil {
		return &publicError{http.StatusServiceUnavailable, "starting"}
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	schema, readOnly, err := s.store.probe(ctx)
	switch {
	case err != nil:
		s.log.WarnContext(ctx, "not ready", "err", err)
		return errNoDatabase
	case schema < s.schema:
		return &publicError{http.StatusServiceUnavailable,
			fmt.Sprintf("the schema is at version %d, this program needs %d: run footfall migrate", schema, s.schema)}
	case readOnly:
		return &publicError{http.StatusServiceUnavailable, "the database is read-only"}
	}
	if c.recorder.isFailing() {
		if err := s.store.tryVisit(ctx, utcDay(s.now())); err != nil {
			s.log.WarnContext(ctx, "not ready", "err", err)
			return &publicError{http.StatusServiceUnavailable, "the database takes no visits"}
		}
	}
	return nil
}

// stats is the count as JSON. It counts nothing.
func (s *server) stats(w http.ResponseWriter, r *http.Request) error {
	t, _, err := s.look(r.Context(), visitorID{})
	if err != nil {
		return errNoDatabase
	}
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
	w.Header().Set("Cache-Control", "no-store")
	return writeJSON(w, struct {
		Visits   int64     `json:"visits"`
		Visitors int64     `json:"visitors"`
		Today    jsonDay   `json:"today"`
		Days     []jsonDay `json:"days"` // the last 30, oldest first
		Since    time.Time `json:"since"`
	}{t.visits, t.visitors, days[len(days)-1], days, t.since.UTC().Truncate(time.Second)})
}

// badge is the number of visitors as a small picture for other sites.
func (s *server) badge(w http.ResponseWriter, r *http.Request) error {
	t, _, err := s.look(r.Context(), visitorID{})
	if err != nil {
		return errNoDatabase
	}
	const label, digit, pad = 52, 7, 10 // widths in pixels at 11px type
	number := group(t.visitors)
	width := len(number)*digit + 2*pad
	var buf bytes.Buffer
	if err := templates.ExecuteTemplate(&buf, "badge.svg", map[string]any{
		"Number": number, "Label": label, "Width": label + width, "NumberWidth": width,
		"LabelMiddle": label / 2, "NumberMiddle": label + width/2,
	}); err != nil {
		return fmt.Errorf("render badge: %w", err)
	}
	// A minute is what image proxies such as GitHub's honour.
	w.Header().Set("Cache-Control", "public, max-age=60")
	write(w, http.StatusOK, "image/svg+xml", buf.Bytes())
	return nil
}

// showMetrics adds to the metrics what others know.
func (s *server) showMetrics(w http.ResponseWriter, r *http.Request) error {
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
	write(w, http.StatusOK, "text/plain; version=0.0.4; charset=utf-8", buf.Bytes())
	return nil
}

// write sends an answer that is complete in memory. An error here means that
// the client has left.
func write(w http.ResponseWriter, status int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

func writeJSON(w http.ResponseWriter, v any) error {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	write(w, http.StatusOK, "application/json", append(body, '\n'))
	return nil
}
