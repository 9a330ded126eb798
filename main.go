// Footfall is a page that counts its unique visitors exactly.
package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal then kills at once
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	if err == nil {
		return
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(os.Stderr, "footfall:", strings.TrimSuffix(line, "\n"))
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		os.Exit(2)
	}
	os.Exit(1)
}

// usageError is a wrong command line or setting: exit status 2.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// helpText fits a screen of 80 columns and 24 lines.
const helpText = `footfall counts the unique visitors of a page, exactly.

  footfall [serve]          apply pending migrations, then serve
  footfall migrate          apply them, and import the Flask original's visitors
  footfall migrate -status  list the migrations
  footfall verify           recount everything; exit status 1 on a difference
  footfall healthcheck      ask the running service's /readyz
  footfall dev              serve with a private PostgreSQL, kept between runs
  footfall version, help    print the version; print this

Settings (environment)                                      default
  DATABASE_URL      postgres://user:password@host/database  required, not by dev
  USER_NAME         who deployed it, shown on the page      n/a
  USER_URL          their link: https, http or mailto       none
  LISTEN_ADDR       host:port or unix:/path                 :8080, or :PORT
  TRUSTED_PROXIES   networks whose X-Forwarded-For counts   127.0.0.0/8, ::1/128
  VISITOR_KEY       secret of the hash, 32 bytes or more    kept in the database
  SHUTDOWN_DELAY    not ready but serving for this long     0s
  SHUTDOWN_TIMEOUT  then the wait for requests in flight    10s
  LOG_FORMAT        json or text                            json
  LOG_LEVEL         debug, info, warn or error              info
DATABASE_URL_FILE and VISITOR_KEY_FILE name a file that holds the secret.
Exit status: 0 done, 1 failed, 2 wrong usage or settings.
`

// run is the program: main without the operating system.
func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) error {
	command := "serve"
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	status := command == "migrate" && len(args) == 1 && (args[0] == "-status" || args[0] == "--status")
	if len(args) == 1 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help") {
		command = "help"
	} else if len(args) > 0 && !status {
		return &usageError{fmt.Errorf("%s takes no %q; see footfall help", command, args[0])}
	}
	switch command {
	case "help", "-h", "-help", "--help":
		_, err := io.WriteString(out, helpText)
		return err
	case "version":
		_, err := fmt.Fprintln(out, thisBuild())
		return err
	case "dev":
		dir, err := devDir()
		if err != nil {
			return err
		}
		return dev(ctx, dir, getenv, out)
	case "serve", "migrate", "verify", "healthcheck":
	default:
		return &usageError{fmt.Errorf("unknown command %q; see footfall help", command)}
	}
	if command == "healthcheck" {
		return healthcheck(ctx, getenv)
	}
	cfg, err := loadConfig(getenv)
	if err != nil {
		return &usageError{err}
	}
	switch {
	case command == "serve":
		err = serve(ctx, cfg, out)
	case status:
		err = migrationStatus(ctx, cfg, out)
	case command == "migrate":
		err = migrateCommand(ctx, cfg, out)
	default:
		err = verifyCommand(ctx, cfg, out)
	}
	if trouble, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return connectFault(trouble)
	}
	return err
}

// connectFault words a failed connection in one sentence; the driver's own
// gives each address that it tried a line, several for one host.
func connectFault(err *pgconn.ConnectError) error {
	hosts := []string{err.Config.Host}
	for _, other := range err.Config.Fallbacks {
		if !slices.Contains(hosts, other.Host) {
			hosts = append(hosts, other.Host)
		}
	}
	var causes []string
	addCauses(err, &causes)
	return fmt.Errorf("DATABASE_URL: connect to database %q on %s as user %q: %s",
		err.Config.Database, strings.Join(hosts, ", "), err.Config.User, strings.Join(causes, "; "))
}

// addCauses gathers the different texts at the ends of a tree of errors.
func addCauses(err error, causes *[]string) {
	text := err.Error()
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			addCauses(one, causes)
		}
		return
	case *pgconn.PgError: // the server's own words: no such database, wrong password
		text = e.Message
	case *net.OpError, *net.DNSError: // their causes say too little
	case interface{ Unwrap() error }:
		if cause := e.Unwrap(); cause != nil {
			addCauses(cause, causes)
			return
		}
	}
	if text = strings.ReplaceAll(text, "\n", " "); !slices.Contains(*causes, text) {
		*causes = append(*causes, text)
	}
}

// Filled by -ldflags "-X main.version=…".
var version, buildNumber, commit, built string

// build tells which program this is.
type build struct {
	Version string `json:"version"`
	Number  string `json:"build"` // how many commits lead to this one: the newer of two builds has the higher
	Commit  string `json:"commit"`
	Built   string `json:"built"` // time of the commit, RFC 3339
	Go      string `json:"go"`
}

func (b build) String() string {
	return fmt.Sprintf("footfall %s (build %s, commit %s, %s, %s)", b.Version, b.Number, b.Commit, b.Built, b.Go)
}

func thisBuild() build {
	b := build{Version: version, Number: buildNumber, Commit: commit, Built: built, Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if ok && b.Version == "" {
		b.Version = info.Main.Version
	}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	if b.Number == "" {
		b.Number = "unknown"
	}
	if b.Commit == "" {
		b.Commit = "unknown"
	}
	if b.Built == "" {
		b.Built = "unknown"
	}
	return b
}

func newLogger(cfg config, out io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(out, options))
	}
	return slog.New(slog.NewJSONHandler(out, options))
}

// serve runs the service until ctx is done and everything in flight is finished.
func serve(ctx context.Context, cfg config, out io.Writer) (err error) {
	log := newLogger(cfg, out)
	// Before all else: an address in use is an error at once.
	ln, err := listen(ctx, cfg.ListenAddr)
	if err != nil {
		return err
	}
	defer ln.Close()
	store := openStore(cfg.Database)
	defer store.close()
	migrations := ourMigrations()
	hasher, err := prepare(ctx, store.reads, migrations, cfg.VisitorKey, log)
	if err != nil {
		return err
	}
	metrics := newMetrics()
	s := &server{
		cfg: cfg, build: thisBuild(), store: store, hasher: hasher, metrics: metrics, log: log,
		recorder: newRecorder(store, log, metrics),
		schema:   len(migrations),
		now:      time.Now,
	}
	// Every read and write has an end: a client that dawdles loses its connection.
	hs := &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    12 << 10, // net/http adds 4 KiB: 16 KiB in all, then 431
		ErrorLog:          slog.NewLogLogger(noAddresses{log.Handler()}, slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- hs.Serve(ln) }()
	log.Info("listening", "addr", ln.Addr().String(), "version", s.build.Version, "commit", s.build.Commit)
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	return s.stop(ctx, hs)
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
	// Its own bound: a batch ends within visitTimeout.
	closeCtx, cancelClose := context.WithTimeout(background, 2*visitTimeout)
	defer cancelClose()
	if closeErr := s.recorder.close(closeCtx); closeErr != nil {
		// Nothing is lost by it: the row goes by itself after a day.
		s.log.Warn("recorder not closed", "err", closeErr)
	}
	if err == nil {
		s.log.Info("stopped")
	}
	return err
}

// noAddresses drops net/http's own messages, which hold clients' addresses;
// only that there was one is kept.
type noAddresses struct{ slog.Handler }

func (h noAddresses) Handle(ctx context.Context, r slog.Record) error {
	return h.Handler.Handle(ctx, slog.NewRecord(r.Time, r.Level, "connection failed", r.PC))
}

// listen opens addr, host:port or unix:/path. A socket that a dead process
// left behind is replaced; the new one is writable for its group, which is how
// nginx may connect.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	path, isUnix := strings.CutPrefix(addr, "unix:")
	if !isUnix {
		ln, err := lc.Listen(ctx, "tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("listen on %q: another program listens there; stop it or set LISTEN_ADDR", addr)
		}
		if err != nil {
			return nil, fmt.Errorf("listen on %q: %w", addr, err)
		}
		return ln, nil
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("listen on %q: there is a file that is no socket; remove it or set LISTEN_ADDR", addr)
		}
		if conn, err := net.Dial("unix", path); err == nil {
			conn.Close()
			return nil, fmt.Errorf("listen on %q: another program listens there; stop it or set LISTEN_ADDR", addr)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen on %q: remove the stale socket: %w", addr, err)
		}
	}
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", addr, err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		ln.Close()
		return nil, fmt.Errorf("listen on %q: %w", addr, err)
	}
	return ln, nil
}

// prepare brings the database to where serving can begin: migrated, with its
// visitor key, and with the visitors of the original taken over.
func prepare(ctx context.Context, db *sql.DB, migrations []migration, key []byte, log *slog.Logger) (hasher, error) {
	result, err := migrate(ctx, db, migrations)
	if err != nil {
		return hasher{}, err
	}
	for _, m := range result.ran {
		log.Info("migrated", "file", m.name, "ms", m.took.Milliseconds())
	}
	if result.unknown > 0 {
		log.Warn("the database is newer than this program", "unknown_migrations", result.unknown)
	}
	var h hasher
	err = underMigrationLock(ctx, db, migrateLockTimeout, func(tx *sql.Tx) error {
		fresh := make([]byte, minVisitorKey)
		rand.Read(fresh) // never fails
		if h, err = visitorKey(ctx, tx, key, fresh); err != nil {
			return err
		}
		return takeOver(ctx, tx, h, log)
	})
	return h, err
}

// migrateCommand applies what is pending and says what it did.
func migrateCommand(ctx context.Context, cfg config, out io.Writer) error {
	store := openStore(cfg.Database)
	defer store.close()
	// As a log, but for a reader at a terminal: without time and level.
	lines := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
				return slog.Attr{}
			}
			return a
		},
	}))
	if _, err := prepare(ctx, store.reads, ourMigrations(), cfg.VisitorKey, lines); err != nil {
		return err
	}
	_, err := fmt.Fprintln(out, "the database is up to date")
	return err
}

// migrationStatus lists all migrations, applied or pending.
func migrationStatus(ctx context.Context, cfg config, out io.Writer) error {
	store := openStore(cfg.Database)
	defer store.close()
	done, err := appliedMigrations(ctx, store.reads)
	if err != nil {
		return err
	}
	ms := ourMigrations()
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, a := range done {
		note := ""
		if a.version > len(ms) {
			note = "unknown to this program"
		}
		fmt.Fprintf(table, "%s\tapplied %s\t%s\n", a.name, a.appliedAt.UTC().Format(time.RFC3339), note)
	}
	for _, m := range ms[min(len(done), len(ms)):] {
		fmt.Fprintf(table, "%s\tpending\t\n", m.name)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	return compareMigrations(ms, done)
}

// verifyCommand recounts and prints each comparison.
func verifyCommand(ctx context.Context, cfg config, out io.Writer) error {
	store := openStore(cfg.Database)
	defer store.close()
	checks, err := store.verify(ctx)
	if err != nil {
		return err
	}
	wrong := 0
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, c := range checks {
		verdict := "ok"
		if c.kept != c.sum {
			verdict = "DIFFERENT"
			wrong++
		}
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\n", c.what, c.kept, c.sum, verdict)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d comparisons differ: restore from a backup, or look for what wrote to the tables beside footfall", wrong, len(checks))
	}
	return nil
}

// dialAddr returns where a service that listens on listenAddr is reached from
// this host.
func dialAddr(listenAddr string) (network, addr string) {
	if path, ok := strings.CutPrefix(listenAddr, "unix:"); ok {
		return "unix", path
	}
	host, port, err := net.SplitHostPort(listenAddr)
	if err != nil || host == "" || net.ParseIP(host).IsUnspecified() {
		return "tcp", net.JoinHostPort("localhost", port)
	}
	return "tcp", listenAddr
}

// healthcheck asks the service that these settings start for its readiness.
func healthcheck(ctx context.Context, getenv func(string) string) error {
	e := env{get: getenv}
	addr := e.listenAddr()
	if len(e.errs) > 0 {
		return &usageError{errors.Join(e.errs...)}
	}
	network, addr := dialAddr(addr)
	client := http.Client{
		Timeout: 2 * readyTimeout,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		}},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://footfall/readyz", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("healthcheck: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		reason, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10)) // the status is bad enough
		return fmt.Errorf("healthcheck: %s: %s", response.Status, strings.TrimSpace(string(reason)))
	}
	return nil
}
