package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"footfall/internal/postgres"
	"footfall/internal/visitor"
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
	draining atomic.Bool // shutdown has begun
	now      func() time.Time
}

// counter is what counting a visit needs.
type counter struct {
	hasher   visitor.Hasher
	recorder *recorder
}

func newServer(cfg config, log *slog.Logger) *server {
	b := thisBuild()
	return &server{
		cfg: cfg, build: b, store: openStore(cfg.Database), counting: make(chan struct{}),
		page:    &page{version: b.Version, userName: cfg.UserName, userURL: cfg.UserURL},
		metrics: newMetrics(), log: log, now: time.Now,
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
	mux.Handle("GET /{$}", s.withErrors(s.index))
	mux.Handle("GET /assets/{file}", s.withErrors(asset))
	for _, res := range s.resources() {
		mux.Handle("GET "+res.path, s.withErrors(res.answer))
	}
	mux.Handle("/", s.withErrors(func(w http.ResponseWriter, r *http.Request) error {
		asGet := *r
		asGet.Method = http.MethodGet
		if _, pattern := mux.Handler(&asGet); pattern == "/" {
			return errNotFound
		}
		w.Header().Set("Allow", "GET, HEAD")
		return &publicError{http.StatusMethodNotAllowed, "Only GET and HEAD are allowed here."}
	}))
	// Directly around the mux: r.Pattern is seen only on the same request.
	return s.observed(s.secured(mux))
}

// index counts the visit and shows the page.
func (s *server) index(w http.ResponseWriter, r *http.Request) error {
	client := visitor.ClientOf(r, s.cfg.TrustedProxies, s.cfg.IgnoredNetworks)
	if client.Result == visitor.Prefetch {
		// Chromium shows what it fetched ahead without asking again. It discards an
		// error, and asks again when the person opens the page.
		s.metrics.visit(client, client.Result)
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusForbidden)
		return nil
	}
	g := greeting{Result: client.Result, Source: client.Source}
	status := http.StatusOK
	own, page, err := s.visit(r.Context(), client)
	if err != nil {
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", retryAfter)
		g.NoDatabase = true
		if g.Result == visitor.Counted {
			g.Result = visitor.Unconfirmed
			if errors.Is(err, errNotCounted) {
				g.Result = visitor.Unavailable
			}
		}
		page = s.page.of(nil)
	}
	s.metrics.visit(client, g.Result)
	return page.write(w, r, status, g, own)
}

var errStarting = fmt.Errorf("%w: the database is not prepared yet", errNotCounted)

// visit counts a visit of client, or only looks if it does not count, and returns
// what the page says of the visitor, and the page.
func (s *server) visit(ctx context.Context, client visitor.Client) (standing, *sharedPage, error) {
	// A service that was killed and started again answers its first requests a
	// little later, not with an error.
	select {
	case <-s.counting:
	case <-time.After(startTimeout):
	}
	c := s.counter.Load()
	if c == nil {
		return standing{}, nil, errStarting
	}
	id := c.hasher.ID(client)
	if client.Result != visitor.Counted {
		t, visits, err := s.look(ctx, id)
		if err != nil {
			return standing{}, nil, err
		}
		return standing{visits: visits}, s.page.of(t), nil
	}
	v, err := c.recorder.record(id)
	if err != nil {
		return standing{}, nil, err
	}
	s.metrics.saw(v.receipt.visits, v.receipt.visitors)
	return v.standing(), v.share(func() any { return s.page.of(&v.receipt.tally) }).(*sharedPage), nil
}

// look reads what the page shows to a visitor who is not counted.
func (s *server) look(ctx context.Context, id visitor.ID) (t *tally, number int64, err error) {
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
// The query goes on if the client leaves: to cancel it would cost the connection,
// and one that has only closed its sending side still waits for the answer.
func (s *server) read(ctx context.Context, query func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
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
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyTimeout)
	defer cancel()
	public := errNoDatabase
	err := s.store.probe(ctx)
	if err == nil && c.recorder.lastFailed() {
		public = &publicError{http.StatusServiceUnavailable, "the database takes no visits"}
		err = s.store.tryVisit(ctx, utcDay(s.now()))
	}
	if err == nil {
		return nil
	}
	s.log.WarnContext(ctx, "not ready", "err", err)
	if reason, ok := errors.AsType[*postgres.Refusal](err); ok {
		public = &publicError{http.StatusServiceUnavailable, reason.Error()}
	}
	return public
}

// publicError is a failure whose text the client may read. The page shows it to
// a person unless the status is 503, and keeps it rendered, so a msg holds
// nothing that a client can choose.
type publicError struct {
	status int
	msg    string
}

func (e *publicError) Error() string { return e.msg }

// withErrors answers for a handler that returns an error before it wrote anything.
// Only the text of a [publicError] reaches the client.
func (s *server) withErrors(h func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := h(w, r)
		if err == nil {
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		if pub, ok := errors.AsType[*publicError](err); ok {
			if pub.status == http.StatusServiceUnavailable {
				w.Header().Set("Retry-After", retryAfter)
			} else if strings.Contains(r.Header.Get("Accept"), "text/html") { // a browser, so a person
				if err = s.page.of(nil).write(w, r, pub.status, greeting{Problem: pub.msg}, standing{}); err == nil {
					return
				}
			}
			http.Error(w, pub.msg, pub.status)
			return
		}
		s.log.ErrorContext(r.Context(), "request failed", "route", r.Pattern, "err", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
	})
}

// retryAfter is in seconds: the service tries its database all the time.
const retryAfter = "5"

var (
	// errNoDatabase is what a client reads whenever the database fails.
	errNoDatabase = &publicError{http.StatusServiceUnavailable, "the database does not answer"}
	errNotFound   = &publicError{http.StatusNotFound, "Page not found."}
)

// securityHeaders are on every answer. The page needs its own style, typeface
// and pictures; tools that judge a page read its robots.txt from within it.
var securityHeaders = http.Header{
	"Content-Security-Policy":    {"default-src 'none'; style-src 'self'; font-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
	"X-Content-Type-Options":     {"nosniff"},
	"Referrer-Policy":            {"no-referrer"},
	"Permissions-Policy":         {"camera=(), geolocation=(), microphone=(), browsing-topics=()"},
	"Cross-Origin-Opener-Policy": {"same-origin"},
}

func (s *server) secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		maps.Copy(h, securityHeaders)
		if s.draining.Load() {
			// nginx and others that keep connections open must leave before the
			// listener closes.
			h.Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// observed measures and logs each request, also one whose handler panics. No
// address, user agent or URL is logged: the route says what was asked.
func (s *server) observed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		seen := &observer{ResponseWriter: w}
		defer func() {
			cause := recover()
			begun := seen.status != 0
			if cause != nil {
				// net/http's own message would hold the client's address.
				s.log.ErrorContext(r.Context(), "handler panicked", "route", r.Pattern, "err", fmt.Sprint(cause), "stack", string(debug.Stack()))
				if !begun {
					seen.Header().Set("Cache-Control", "no-store")
					http.Error(seen, "internal error", http.StatusInternalServerError)
				}
				seen.status = http.StatusInternalServerError
			}
			s.observe(r, seen, time.Since(start))
			if cause != nil && begun {
				panic(http.ErrAbortHandler) // half an answer is out: the client must see that it is broken
			}
		}()
		next.ServeHTTP(seen, r)
	})
}

func (s *server) observe(r *http.Request, seen *observer, took time.Duration) {
	status := max(seen.status, http.StatusOK) // for a handler that wrote nothing
	_, route, known := strings.Cut(strings.TrimSuffix(r.Pattern, "{$}"), " ")
	if !known {
		route = "other"
	}
	s.metrics.request(route, status, took)
	level := slog.LevelInfo
	if status < http.StatusBadRequest {
		level = slog.LevelDebug // the metrics have it, and a proxy's own log
	}
	s.log.LogAttrs(r.Context(), level, "request",
		slog.String("method", knownMethod(r.Method)),
		slog.String("route", route),
		slog.Int("status", status),
		slog.Int("bytes", seen.bytes),
		slog.Float64("ms", float64(took.Microseconds())/1000))
}

// knownMethod keeps a method that a client has invented out of the log.
func knownMethod(method string) string {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE":
		return method
	}
	return "other"
}

// observer remembers what an answer was.
type observer struct {
	http.ResponseWriter
	status, bytes int // status is 0 until the answer begins
}

func (o *observer) WriteHeader(status int) {
	o.status = status
	o.ResponseWriter.WriteHeader(status)
}

func (o *observer) Write(b []byte) (int, error) {
	o.status = max(o.status, http.StatusOK) // as net/http does
	n, err := o.ResponseWriter.Write(b)
	o.bytes += n
	return n, err
}
