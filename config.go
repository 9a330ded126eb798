package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// config holds every setting. It comes from the environment alone.
type config struct {
	Database        *pgx.ConnConfig // from DATABASE_URL
	UserName        string          // who deployed it, shown on the page
	UserURL         string          // their link; empty: no link
	ListenAddr      string          // host:port, or unix:/path
	TrustedProxies  []netip.Prefix  // peers whose X-Forwarded-For is believed
	VisitorKey      []byte          // secret of the visitor hash; nil: the one kept in the database
	ShutdownDelay   time.Duration   // not ready, but serving, for this long
	ShutdownTimeout time.Duration   // then the longest wait for requests in flight
	LogFormat       string          // json or text
	LogLevel        slog.Level
}

// minVisitorKey is the least length of VISITOR_KEY in bytes: as long as the
// hash's output, below which HMAC gets weaker (RFC 2104, section 3).
const minVisitorKey = 32

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

var (
	// SQLAlchemy writes the driver into the scheme: postgresql+psycopg2://.
	databaseScheme = regexp.MustCompile(`^(postgres|postgresql)(\+[a-z0-9]+)?://`)
	// What a driver's message may quote of a URL or of a key=value string.
	quotedSecret = regexp.MustCompile(`(?i)(://[^:/@\s]*:)[^@\s]*@|(password=)\S+`)
)

// connectTimeout bounds the try of one host where DATABASE_URL names several
// and no connect_timeout: a dead host must leave time for the next one within
// the wait of a visit.
const connectTimeout = 500 * time.Millisecond

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
	cfg, err := pgx.ParseConfig("postgres://" + strings.TrimPrefix(value, scheme))
	if err != nil {
		cause := err
		if inner := errors.Unwrap(err); inner != nil {
			cause = inner // without the URL, which the outer one repeats
		}
		if u, ok := errors.AsType[*url.Error](err); ok {
			cause = u.Err
		}
		e.wrong("DATABASE_URL is not understood: %s", quotedSecret.ReplaceAllString(cause.Error(), "$1$2…"))
		return nil
	}
	if len(cfg.Fallbacks) > 0 && cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectTimeout
	}
	return cfg
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
	fallback := ":8080"
	if port := e.str("PORT", ""); port != "" {
		fallback = ":" + port
	}
	v := e.str("LISTEN_ADDR", fallback)
	if path, ok := strings.CutPrefix(v, "unix:"); ok {
		// sun_path of sockaddr_un holds 108 bytes with the closing zero (unix(7)).
		if !filepath.IsAbs(path) || len(path) > 107 {
			e.wrong("LISTEN_ADDR is %q, want unix: and an absolute path of at most 107 bytes", v)
		}
		return v
	}
	_, port, err := net.SplitHostPort(v)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		e.wrong("LISTEN_ADDR is %q, want host:port, :port or unix:/path", v)
	}
	return v
}

func (e *env) prefixes(key, fallback string) []netip.Prefix {
	var prefixes []netip.Prefix
	for part := range strings.SplitSeq(e.str(key, fallback), ",") {
		part = strings.TrimSpace(part)
		prefix, err := netip.ParsePrefix(part)
		if addr, addrErr := netip.ParseAddr(part); addrErr == nil && addr.Zone() == "" {
			prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
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
	for _, a := range allowed {
		if v == a {
			return v
		}
	}
	e.wrong("%s is %q, want one of: %s", key, v, strings.Join(allowed, ", "))
	return v
}

func (e *env) level(key string) slog.Level {
	switch e.oneOf(key, "info", "debug", "warn", "error") {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	}
	return slog.LevelInfo
}
