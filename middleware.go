package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"runtime/debug"
	"strings"
	"time"
)

// publicError is a failure whose text the client may read. The page shows it to
// a person unless the status is 503, and keeps it rendered, so a msg holds
// nothing that a client can choose.
type publicError struct {
	status int
	msg    string
}

func (e *publicError) Error() string { return e.msg }

// try answers for a handler that returns an error before it wrote anything.
// The client never sees a cause that is not made for it.
func (s *server) try(h func(http.ResponseWriter, *http.Request) error) http.Handler {
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
				if err = s.page.render(nil).write(w, pub.status, you{Problem: pub.msg}, 0); err == nil {
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

// retryAfter is in seconds: the service looks for its database all the time.
const retryAfter = "5"

var (
	// errNoDatabase is what a client hears of any trouble with the database.
	errNoDatabase = &publicError{http.StatusServiceUnavailable, "the database does not answer"}
	errNotFound   = &publicError{http.StatusNotFound, "There is nothing at this address."}
)

// securityHeaders are on every answer. The page needs its own style sheet
// and icon and nothing else.
var securityHeaders = http.Header{
	"Content-Security-Policy":    {"default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
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
	if status < http.StatusBadRequest && (route == "/healthz" || route == "/readyz" || route == "/metrics") {
		level = slog.LevelDebug // several a minute, and good
	}
	s.log.LogAttrs(r.Context(), level, "request",
		slog.String("method", knownMethod(r.Method)),
		slog.String("route", route),
		slog.Int("status", status),
		slog.Int("bytes", seen.bytes),
		slog.Float64("ms", float64(took.Microseconds())/1000))
}

// knownMethod keeps what a client makes up out of the log.
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
