package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"footfall/internal/devdb"
)

// migrateCommand applies what is pending and says what it did.
func migrateCommand(ctx context.Context, cfg config, out io.Writer) error {
	store := openStore(cfg.Database)
	defer store.close()
	if _, err := prepareDatabase(ctx, store.reads, cfg.VisitorKey, slog.New(slog.NewTextHandler(out, nil))); err != nil {
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

// dev serves with a private PostgreSQL, so that a developer needs to set up
// nothing. Its data stay in dir between runs.
func dev(ctx context.Context, dir string, getenv func(string) string, out io.Writer) (err error) {
	load := func(databaseURL string) (config, error) {
		return loadConfig(func(key string) string {
			switch key {
			case "DATABASE_URL":
				return databaseURL
			case "DATABASE_URL_FILE":
				return ""
			case "LOG_FORMAT":
				return cmp.Or(getenv(key), "text")
			}
			return getenv(key)
		})
	}
	// Wrong settings and an address in use are reported before anything starts.
	cfg, err := load("postgres://localhost")
	if err != nil {
		return &usageError{err}
	}
	ln, err := listen(ctx, cfg.ListenAddr)
	if err != nil {
		return err
	}
	ln.Close()
	cluster, err := devdb.Start(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	databaseURL := cluster.URL("footfall")
	if cfg, err = load(databaseURL); err != nil {
		return err
	}
	where := cfg.ListenAddr
	if network, addr := dialAddr(where); network == "tcp" {
		where = "http://" + addr
	}
	fmt.Fprintf(out, "footfall is at %s (Ctrl-C stops it)\ndata: %s\nshell: psql '%s'\n", where, dir, databaseURL)
	return serve(ctx, cfg, out)
}
