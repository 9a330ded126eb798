package main

import (
	"bufio"
	"cmp"
	"context"
	"database/sql"
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
	"footfall/internal/visitor"
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

// verifyCommand recounts and prints each comparison. With record the page shows
// when that was, and whether the numbers agreed.
func verifyCommand(ctx context.Context, cfg config, out io.Writer, record bool) error {
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
	if record {
		if err := store.recorded(ctx, "recount", wrong == 0); err != nil {
			return err
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d comparisons differ: restore from a backup, or look for what wrote to the tables beside footfall", wrong, len(checks))
	}
	return nil
}

// check is one line of verify: two numbers that must be equal.
type check struct {
	what      string
	kept, sum int64
}

// verify recomputes the totals, each day's new visitors, and the visitors of the
// last two days, in one snapshot. It always makes the same eight checks.
func (s *store) verify(ctx context.Context) ([]check, error) {
	tx, err := s.reads.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	defer tx.Rollback() // nothing to keep
	rows, err := tx.QueryContext(ctx, `
		WITH total AS (
			SELECT
				count(*) AS rows, COALESCE(sum(visits), 0) AS visits, COALESCE(sum(visitors), 0) AS visitors,
				sum(imported_visits) AS imported_visits, sum(imported_visitors) AS imported_visitors,
				sum(forgotten_visits) AS forgotten_visits, sum(forgotten_visitors) AS forgotten_visitors
			FROM totals
		), rows AS (
			SELECT sum(visits) AS visits, count(*) AS visitors FROM visitors
		), by_day AS (
			SELECT sum(visits) AS visits, sum(new_visitors) AS new_visitors FROM days
		), latest AS (
			SELECT max(day) AS day FROM days
		)
		SELECT what, kept::bigint, COALESCE(recounted, 0)::bigint FROM (
			SELECT 1, 'rows of totals = 1', rows, 1 FROM total
			UNION ALL
			SELECT 2, 'all visits = sum over visitors + forgotten', total.visits, COALESCE(rows.visits, 0) + forgotten_visits FROM total, rows
			UNION ALL
			SELECT 3, 'all visitors = rows of visitors + forgotten', total.visitors, rows.visitors + forgotten_visitors FROM total, rows
			UNION ALL
			SELECT 4, 'all visits = sum over days + imported', total.visits, COALESCE(by_day.visits, 0) + imported_visits FROM total, by_day
			UNION ALL
			SELECT 5, 'all visitors = new ones over days + imported', total.visitors, COALESCE(by_day.new_visitors, 0) + imported_visitors FROM total, by_day
			UNION ALL
			SELECT 6, 'days whose new visitors differ from rows + forgotten', 0, count(*)
			FROM (SELECT first_seen AS day, count(*) AS n FROM visitors WHERE first_seen IS NOT NULL GROUP BY first_seen) AS seen
			FULL JOIN days USING (day)
			WHERE COALESCE(seen.n, 0) + COALESCE(days.forgotten_new, 0) <> COALESCE(days.new_visitors, 0)
			UNION ALL
			SELECT 7, 'visitors of the latest day = rows + forgotten', COALESCE(days.visitors, 0),
				COALESCE(days.forgotten, 0) + (SELECT count(*) FROM visitors WHERE last_seen = latest.day)
			FROM latest LEFT JOIN days USING (day)
			UNION ALL
			SELECT 8, 'visitors of the day before it = rows + forgotten', COALESCE(days.visitors, 0),
				COALESCE(days.forgotten, 0) + (SELECT count(*) FROM visitors WHERE last_seen = latest.day - 1 OR last_seen = latest.day AND seen_day_before)
			FROM latest LEFT JOIN days ON days.day = latest.day - 1
		) AS checks (n, what, kept, recounted)
		ORDER BY n`)
	if isUndefined(err) {
		return nil, errNoCount
	}
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	defer rows.Close()
	var checks []check
	for rows.Next() {
		var c check
		if err := rows.Scan(&c.what, &c.kept, &c.sum); err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
		checks = append(checks, c)
	}
	return checks, rows.Err()
}

// forgetCommand removes what is kept of the visitors with these addresses, one per
// line, each in any form that a proxy writes. A line that is none is reported when
// the others are done. No message holds an address.
func forgetCommand(ctx context.Context, cfg config, out io.Writer, addresses io.Reader) error {
	store := openStore(cfg.Database)
	defer store.close()
	if err := requireSchema(ctx, store); err != nil {
		return err
	}
	h, _, err := findKey(ctx, store.reads, cfg.VisitorKey)
	if err != nil {
		return err
	}
	var wrong []error
	n := 0
	lines := bufio.NewScanner(addresses)
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		n++
		client, ok := visitor.Parse(lines.Text())
		if !ok {
			wrong = append(wrong, fmt.Errorf("forget: address %d must be written as 192.0.2.7 or 2001:db8::7", n))
			continue
		}
		visits, err := store.forget(ctx, h.ID(client))
		if err != nil {
			return fmt.Errorf("address %d: %w", n, err)
		}
		sentence := "no such visitor is stored"
		if number := group(visits); visits > 0 {
			sentence = fmt.Sprintf("removed one visitor with %s %s; the totals are unchanged", number, plural(number, "visit"))
		}
		if _, err := fmt.Fprintln(out, sentence); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read address %d: %w", n+1, err)
	}
	if n == 0 {
		wrong = append(wrong, errors.New("forget: give the address as an argument, or addresses on standard input, one per line"))
	}
	if len(wrong) > 0 {
		return &usageError{errors.Join(wrong...)}
	}
	return nil
}

// requireSchema refuses a database that this program has not migrated.
func requireSchema(ctx context.Context, s *store) error {
	done, err := appliedMigrations(ctx, s.reads)
	if err != nil {
		return err
	}
	if needs := len(ourMigrations()); len(done) < needs {
		return fmt.Errorf("%s, or look at the database's name in DATABASE_URL", behind(len(done), needs))
	}
	return nil
}
