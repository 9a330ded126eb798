package main

import (
	"context"
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
	mux.Handle("GET /assets/{file}", s.try(s.asset))
	for _, res := range s.resources() {
		mux.Handle("GET "+res.path, s.try(res.answer))
	}
	mux.Handle("/", s.try(func(w http.ResponseWriter, r *http.Request) error {
		asGet := *r
		asGet.Method = http.MethodGet
		if _, pattern := mux.Handler(&asGet); pattern == "/" {
			return errNotFound
		}
		w.Header().Set("Allow", "GET, HEAD")
		return &publicError{http.StatusMethodNotAllowed, "This address can only be read."}
	}))
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
func (s *server) look(ctx context.Context, id visitorID) (t *tally, number int64, err error) {
	err = s.read(ctx, func(ctx context.Context) (err error) {
		t, number, err = s.store.look(ctx, utcDay(s.now()), id[:])
		return err
	})
	if err == nil {
		s.metrics.saw(t.visits, t.visitors)
	}
	return t, number, err
}

// read runs a query that reads, within readTimeout. Its error is [errNoDatabase].
func (s *server) read(ctx context.Context, query func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	if err := query(ctx); err != nil {
		s.log.WarnContext(ctx, "totals not read", "err", err)
		return errNoDatabase
	}
	return nil
}

// readyz is readiness: that a visit would be counted now.
func (s *server) readyz(ctx context.Context, _ string) ([]byte, error) {
	err := s.ready(ctx)
	s.metrics.ready(err == nil)
	return []byte("ready\n"), err
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
		return &publicError{http.StatusServiceUnavailable, behind(schema, s.schema)}
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

// write sends an answer that is complete in memory. An error here means that
// the client has left.
func write(w http.ResponseWriter, status int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}
