package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"footfall/internal/postgres"
)

func newLogger(cfg config, out io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(out, options))
	}
	return slog.New(slog.NewJSONHandler(out, options))
}

// logBuffer is between the log and its reader, so that nobody waits for a line to
// be read: a stopped Docker daemon would stop the page. What does not fit is
// dropped and counted, and a line says so once there is a reader again.
type logBuffer struct {
	out     io.Writer
	dropped *atomic.Uint64 // lines

	mu     sync.Mutex
	lines  []byte
	closed bool          // no more lines
	wake   chan struct{} // holds one token while there is something to do
	done   chan struct{} // closed when run has returned
}

const (
	maxLogBuffer = 256 << 10       // bytes: a thousand lines or more
	flushTimeout = 2 * time.Second // of a stop, for the last lines
)

// newLogBuffer starts to write to out; direct is a log that does so itself.
func newLogBuffer(out io.Writer, direct *slog.Logger, dropped *atomic.Uint64) *logBuffer {
	b := &logBuffer{out: out, dropped: dropped, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go b.run(direct)
	return b
}

func (b *logBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.lines)+len(line) > maxLogBuffer {
		b.dropped.Add(1)
	} else {
		b.lines = append(b.lines, line...)
	}
	b.signal()
	return len(line), nil
}

func (b *logBuffer) signal() {
	select {
	case b.wake <- struct{}{}:
	default: // a token is there already
	}
}

func (b *logBuffer) run(direct *slog.Logger) {
	defer close(b.done)
	var lines []byte
	var said uint64
	for range b.wake {
		b.mu.Lock()
		lines, b.lines = b.lines, lines[:0]
		closed := b.closed
		b.mu.Unlock()
		if _, err := b.out.Write(lines); err != nil { // the reader has gone
			b.dropped.Add(uint64(bytes.Count(lines, []byte("\n"))))
		} else if all := b.dropped.Load(); all > said {
			direct.Warn("log lines dropped: nobody read them", "lines", all-said)
			said = all
		}
		if closed {
			return
		}
	}
}

// close writes what is left, if it is read.
func (b *logBuffer) close() {
	b.mu.Lock()
	b.closed = true
	b.signal()
	b.mu.Unlock()
	select {
	case <-b.done:
	case <-time.After(flushTimeout):
	}
}

// serve runs the service until ctx is done and everything in flight is
// finished. It answers from the start; visits are counted once the database is
// prepared.
func serve(ctx context.Context, cfg config, out io.Writer) error {
	// A reader of the log that goes away is no reason to end (os/signal, "SIGPIPE").
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	s := newServer(cfg, nil)
	lines := newLogBuffer(out, newLogger(cfg, out), &s.metrics.droppedLines)
	defer lines.close()
	s.log = newLogger(cfg, lines)
	defer s.store.close()
	// First, so that an address in use is an error at once.
	ln, err := listen(ctx, cfg.ListenAddr)
	if err != nil {
		return err
	}
	// Every read and write has an end: a slow client loses its connection.
	hs := &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    12 << 10, // net/http adds 4 KiB: 16 KiB in all, then 431
		ErrorLog:          log.New(serverLog{s.log}, "", 0),
	}
	defer hs.Close() // for the early returns; stop closes cleanly
	closeUnused(hs)
	failed := make(chan error, 2)
	go func() { failed <- fmt.Errorf("serve: %w", hs.Serve(ln)) }()
	s.log.Info("listening", "addr", ln.Addr().String(), "version", s.build.Version, "commit", s.build.Commit)
	for _, name := range cfg.Ignored {
		s.log.Warn("parameter of DATABASE_URL ignored: it is for another driver", "parameter", name)
	}
	preparing, cancel := context.WithCancel(ctx)
	prepared := make(chan struct{})
	go func() {
		defer close(prepared)
		if err := s.prepare(preparing); err != nil {
			failed <- err
		}
	}()
	defer func() { cancel(); <-prepared }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	<-prepared
	return s.stop(ctx, hs)
}

// notReadyEvery is how often a cause that has not changed is logged again.
const notReadyEvery = time.Minute

// prepare retries prepareDatabase until it succeeds, fails for good, or ctx is
// done; then it starts the recorder.
func (s *server) prepare(ctx context.Context) error {
	start := time.Now()
	said, saidAt := "", time.Time{}
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		h, err := prepareDatabase(ctx, s.store.reads, s.cfg.VisitorKey, s.log)
		switch {
		case err == nil:
			s.store.fingerprint = h.Fingerprint()
			s.counter.Store(&counter{h, newRecorder(s.store, s.log, s.metrics)})
			close(s.counting)
			s.log.Info("ready", "ms", time.Since(start).Milliseconds())
			return nil
		case ctx.Err() != nil:
			return nil
		case !postgres.Retryable(err):
			return err
		}
		if text := postgres.Explain(err).Error(); text != said || s.now().Sub(saidAt) >= notReadyEvery {
			s.log.Warn("not ready yet", "err", text)
			said, saidAt = text, s.now()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// stop ends the service in the order that loses nothing: not ready, serving on
// for the delay, no new connections, requests in flight, the recorder.
func (s *server) stop(ctx context.Context, hs *http.Server) error {
	s.draining.Store(true)
	s.log.Info("shutting down", "cause", context.Cause(ctx).Error(), "delay_ms", s.cfg.ShutdownDelay.Milliseconds())
	background := context.WithoutCancel(ctx)
	<-time.After(s.cfg.ShutdownDelay)
	stopCtx, cancel := context.WithTimeout(background, s.cfg.ShutdownTimeout)
	defer cancel()
	err := hs.Shutdown(stopCtx)
	if err != nil {
		err = fmt.Errorf("requests still in flight after %s: %w", s.cfg.ShutdownTimeout, err)
	}
	if c := s.counter.Load(); c != nil {
		closeCtx, cancel := context.WithTimeout(background, 2*visitTimeout) // a batch ends within one
		defer cancel()
		if closeErr := c.recorder.close(closeCtx); closeErr != nil {
			// Nothing is lost: another process removes the row after a day.
			s.log.Warn("recorder not closed", "err", closeErr)
		}
	}
	if err == nil {
		s.log.Info("stopped")
	}
	return err
}

// closeUnused closes connections without a request, as browsers and balancers open
// them, when hs.Shutdown begins, which would wait 5 s for each and never answer it.
func closeUnused(hs *http.Server) {
	var unused sync.Map // of net.Conn
	hs.ConnState = func(conn net.Conn, state http.ConnState) {
		if state == http.StateNew {
			unused.Store(conn, nil)
		} else {
			unused.Delete(conn)
		}
	}
	hs.RegisterOnShutdown(func() {
		unused.Range(func(conn, _ any) bool {
			conn.(net.Conn).Close() // an error: it is closed
			return true
		})
	})
}

// serverLog takes net/http's own messages. Most contain a client's address, so it
// logs only the event, at debug.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Write(line []byte) (int, error) {
	// Such as "accept4: too many open files"; the address in it is our own.
	if cause, ok := strings.CutPrefix(string(line), "http: Accept error: "); ok {
		l.log.Warn("connection not accepted", "err", strings.TrimSpace(cause))
	} else {
		l.log.Debug("connection failed")
	}
	return len(line), nil
}

// listen opens addr, host:port or unix:/path.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	var ln net.Listener
	var err error
	if path, isUnix := strings.CutPrefix(addr, "unix:"); isUnix {
		ln, err = listenUnix(ctx, path)
	} else {
		ln, err = new(net.ListenConfig).Listen(ctx, "tcp", addr)
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		err = errors.New("another program listens there; stop it or set LISTEN_ADDR")
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", addr, err)
	}
	return ln, nil
}

// listenUnix replaces a socket that a dead process left behind. The new one is
// writable for its group, which is how nginx may connect.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, errors.New("a file that is not a socket is in the way; remove it or set LISTEN_ADDR")
		}
		conn, err := net.Dial("unix", path)
		switch {
		case err == nil:
			conn.Close()
			return nil, syscall.EADDRINUSE
		case errors.Is(err, syscall.EAGAIN): // its queue is full (connect(2))
			return nil, syscall.EADDRINUSE
		case !errors.Is(err, syscall.ECONNREFUSED): // that is how a socket without a process answers
			return nil, fmt.Errorf("find out whether a program listens there: %w", err)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the stale socket: %w", err)
		}
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}
