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
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

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
	if _, err := prepare(ctx, store.reads, cfg.VisitorKey, lines); err != nil {
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
	settings := map[string]string{
		"DATABASE_URL":      "postgres://localhost", // until the cluster's is known
		"DATABASE_URL_FILE": "",
		"LOG_FORMAT":        cmp.Or(getenv("LOG_FORMAT"), "text"),
	}
	withDatabase := func(key string) string {
		if value, ok := settings[key]; ok {
			return value
		}
		return getenv(key)
	}
	// Wrong settings and an address in use are reported before anything starts.
	cfg, err := loadConfig(withDatabase)
	if err != nil {
		return &usageError{err}
	}
	ln, err := listen(ctx, cfg.ListenAddr)
	if err != nil {
		return err
	}
	ln.Close()
	cluster, err := startCluster(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.stop()) }()
	settings["DATABASE_URL"] = cluster.url("footfall")
	if cfg, err = loadConfig(withDatabase); err != nil {
		return err
	}
	if err = cluster.createDatabase(ctx, "footfall"); err != nil {
		return err
	}
	fmt.Fprintf(out, "data in %s\npsql '%s'\n%s\n", dir, cluster.url("footfall"), howToOpen(cfg.ListenAddr))
	return serve(ctx, cfg, out)
}

// howToOpen returns the command that shows a developer the page.
func howToOpen(listenAddr string) string {
	network, addr := dialAddr(listenAddr)
	if network == "unix" {
		return fmt.Sprintf("curl --unix-socket %s http://footfall/", addr)
	}
	return fmt.Sprintf("open http://%s", addr)
}

// devDir is where the development cluster lives. Root's own cache folder cannot
// be entered by the account that the server must run as, so root has another.
func devDir() (string, error) {
	if os.Getuid() == 0 && os.Getenv("XDG_CACHE_HOME") == "" {
		return "/var/cache/footfall", nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	return filepath.Join(cache, "footfall"), nil
}
