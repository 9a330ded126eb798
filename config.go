package main

import (
	"errors"
	"fmt"
	"footfall/internal/visitor"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// usageError is a wrong command line or setting: exit status 2.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// config holds every setting. It comes from the environment alone.
type config struct {
	Database        *pgx.ConnConfig // from DATABASE_URL
	UserName        string          // who deployed it, shown on the page
	UserURL         string          // their link; empty: no link
	ListenAddr      string          // host:port, or unix:/path
	TrustedProxies  []netip.Prefix  // peers whose X-Forwarded-For is believed
	IgnoredNetworks []netip.Prefix  // whose visits are not counted
	VisitorKey      []byte          // secret of the visitor hash; nil: the one kept in the database
	ShutdownDelay   time.Duration   // not ready, but serving, for this long
	ShutdownTimeout time.Duration   // then the longest wait for requests in flight
	LogFormat       string          // json or text
	LogLevel        slog.Level
}

// loadConfig reads every setting and reports every wrong one, not just the
// first. An unset or empty variable means its default. No message holds the
// value of a secret.
func loadConfig(getenv func(string) string) (config, error) {
	e := env{get: getenv}
	cfg := config{
		Database:        e.database(),
		UserName:        e.str("USER_NAME", "n/a"),
		UserURL:         e.link("USER_URL"),
		ListenAddr:      e.listenAddr(),
		TrustedProxies:  e.prefixes("TRUSTED_PROXIES", "127.0.0.0/8, ::1/128"),
		IgnoredNetworks: e.prefixes("IGNORED_NETWORKS", ""),
		VisitorKey:      e.visitorKey(),
		ShutdownDelay:   e.duration("SHUTDOWN_DELAY", 0, 0),
		ShutdownTimeout: e.duration("SHUTDOWN_TIMEOUT", 10*time.Second, time.Millisecond),
		LogFormat:       e.oneOf("LOG_FORMAT", "json", "text"),
		LogLevel:        e.level("LOG_LEVEL"),
	}
	return cfg, errors.Join(e.errs...)
}

// env reads settings and gathers what is wrong with them.
type env struct {
	get  func(string) string
	errs []error
}

func (e *env) wrong(format string, args ...any) {
	e.errs = append(e.errs, fmt.Errorf(format, args...))
}

func (e *env) str(key, fallback string) string {
	if v := strings.TrimSpace(e.get(key)); v != "" {
		return v
	}
	return fallback
}

// secret returns KEY, or the content of the file that KEY_FILE names.
func (e *env) secret(key string) string {
	value, file := e.get(key), e.get(key+"_FILE")
	if value != "" && file != "" {
		e.wrong("%s and %s_FILE are both set, want one of them", key, key)
		return ""
	}
	if file == "" {
		return value
	}
	content, err := os.ReadFile(file)
	if err != nil {
		e.wrong("%s_FILE: %w", key, err) // names the file, which is no secret
		return ""
	}
	value = strings.TrimSpace(string(content))
	if value == "" {
		e.wrong("%s_FILE: %s is empty", key, file)
	}
	return value
}

// SQLAlchemy writes the driver into the scheme: postgresql+psycopg2://.
var databaseScheme = regexp.MustCompile(`^(postgres|postgresql)(\+[a-z0-9]+)?://`)

// Without a connect_timeout in DATABASE_URL: where it names several hosts, a
// dead one must leave time for the next within the wait of a visit; a single
// one that swallows packets must not let a start hang for the two minutes that
// the kernel tries (tcp(7), tcp_syn_retries).
const (
	connectTimeoutEach   = 500 * time.Millisecond
	connectTimeoutSingle = 5 * time.Second
)

func (e *env) database() *pgx.ConnConfig {
	failed := len(e.errs)
	value := strings.TrimSpace(e.secret("DATABASE_URL"))
	if len(e.errs) > failed {
		return nil
	}
	if value == "" {
		e.wrong("DATABASE_URL is not set, want postgres://user:password@host:5432/database")
		return nil
	}
	scheme := databaseScheme.FindString(value)
	if scheme == "" {
		e.wrong("DATABASE_URL has the wrong scheme, want postgres://user:password@host:5432/database")
		return nil
	}
	value = "postgres://" + strings.TrimPrefix(value, scheme)
	cfg, err := pgx.ParseConfig(value)
	if err != nil {
		e.wrong("DATABASE_URL is not understood: %s", urlFault(value, err))
		return nil
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectTimeoutSingle
		// A fallback may be the same host without TLS (sslmode=prefer).
		if slices.ContainsFunc(cfg.Fallbacks, func(f *pgconn.FallbackConfig) bool { return f.Host != cfg.Host || f.Port != cfg.Port }) {
			cfg.ConnectTimeout = connectTimeoutEach
		}
	}
	return cfg
}

// urlFault words what is wrong with a DATABASE_URL. What a parser says about a
// malformed one may quote a part of the password, so only the faults of a
// well-formed one are passed on: those of its parameters.
func urlFault(value string, err error) string {
	if u, parseErr := url.Parse(value); parseErr == nil {
		_, queryErr := url.ParseQuery(u.RawQuery)
		if cause := errors.Unwrap(err); cause != nil && queryErr == nil {
			return cause.Error() // without the URL, which err itself repeats
		}
	}
	return "want postgres://user:password@host:5432/database, with signs such as @ : / ? # % in the password percent-encoded"
}

func (e *env) link(key string) string {
	v := e.str(key, "")
	if v == "" {
		return ""
	}
	u, err := url.Parse(v)
	if err == nil {
		switch {
		case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "",
			u.Scheme == "mailto" && u.Opaque != "":
			return v
		}
	}
	e.wrong("%s is %q, want an address that begins with https://, http:// or mailto:", key, v)
	return ""
}

func (e *env) listenAddr() string {
	if port := e.str("PORT", ""); port != "" && e.str("LISTEN_ADDR", "") == "" {
		if !isPort(port) {
			e.wrong("PORT is %q, want a number up to 65535", port)
		}
		return ":" + port
	}
	v := e.str("LISTEN_ADDR", ":8080")
	if path, ok := strings.CutPrefix(v, "unix:"); ok {
		// sun_path of sockaddr_un holds 108 bytes with the closing zero (unix(7)).
		if !filepath.IsAbs(path) || len(path) > 107 {
			e.wrong("LISTEN_ADDR is %q, want unix: and an absolute path of at most 107 bytes", v)
		}
		return v
	}
	if _, port, err := net.SplitHostPort(v); err != nil || !isPort(port) {
		e.wrong("LISTEN_ADDR is %q, want host:port, :port or unix:/path", v)
	}
	return v
}

func isPort(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

func (e *env) prefixes(key, fallback string) []netip.Prefix {
	value := e.str(key, fallback)
	if value == "" {
		return nil
	}
	var prefixes []netip.Prefix
	for part := range strings.SplitSeq(value, ",") {
		part = strings.TrimSpace(part)
		prefix, err := visitor.ParseNetwork(part)
		if err != nil {
			e.wrong("%s has %q, want networks such as 10.0.0.0/8, 2001:db8::/32, with commas between", key, part)
			continue
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes
}

func (e *env) visitorKey() []byte {
	v := e.secret("VISITOR_KEY")
	if v == "" {
		return nil
	}
	if len(v) < minVisitorKey {
		e.wrong("VISITOR_KEY has %d bytes, want at least %d, such as the output of: openssl rand -hex 32", len(v), minVisitorKey)
		return nil
	}
	return []byte(v)
}

func (e *env) duration(key string, fallback, least time.Duration) time.Duration {
	v := e.str(key, "")
	if v == "" {
		return fallback
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < least {
		e.wrong(`%s is %q, want a duration such as "10s"`, key, v)
	}
	return d
}

func (e *env) oneOf(key string, allowed ...string) string {
	v := e.str(key, allowed[0])
	if !slices.Contains(allowed, v) {
		e.wrong("%s is %q, want one of: %s", key, v, strings.Join(allowed, ", "))
	}
	return v
}

func (e *env) level(key string) (level slog.Level) {
	level.UnmarshalText([]byte(e.oneOf(key, "info", "debug", "warn", "error"))) // each is a level
	return level
}
