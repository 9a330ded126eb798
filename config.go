package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
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

	"footfall/internal/postgres"
	"footfall/internal/visitor"

	"github.com/jackc/pgx/v5"
)

// usageError is a wrong command line or setting: exit status 2.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// config holds every setting. It comes only from the environment.
type config struct {
	Database        *pgx.ConnConfig // from DATABASE_URL
	Ignored         []string        // parameters of it that only concern another driver
	UserName        string          // who deployed it, shown on the page
	UserURL         string          // their link; empty: no link
	ListenAddr      string          // host:port, or unix:/path
	TrustedProxies  []netip.Prefix  // peers whose X-Forwarded-For is trusted
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
		UserName:        strings.ToValidUTF8(e.str("USER_NAME", "n/a"), "\uFFFD"),
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
	cfg.Ignored = e.ignored
	return cfg, errors.Join(e.errs...)
}

// env reads settings and gathers what is wrong with them.
type env struct {
	get     func(string) string
	errs    []error
	ignored []string
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

// secret returns KEY, or the content of the file that KEY_FILE names. That name
// may be the secret itself by mistake, so no message repeats it.
func (e *env) secret(key string) string {
	value, file := e.get(key), e.get(key+"_FILE")
	if value != "" && file != "" {
		e.wrong("%s and %s_FILE are both set; set one of them", key, key)
		return ""
	}
	if file == "" {
		return value
	}
	content, err := os.ReadFile(file)
	if fault, ok := errors.AsType[*fs.PathError](err); ok {
		e.wrong("%s_FILE must name a file that holds the secret: %w", key, fault.Err)
		return ""
	}
	value = strings.TrimSpace(string(content))
	if value == "" {
		e.wrong("%s_FILE names an empty file: write the secret into it or unset %s_FILE", key, key)
	}
	return value
}

// SQLAlchemy writes the driver into the scheme: postgresql+psycopg2://.
var databaseScheme = regexp.MustCompile(`^(postgres|postgresql)(\+[a-z0-9]+)?://`)

func (e *env) database() *pgx.ConnConfig {
	failed := len(e.errs)
	value := strings.TrimSpace(e.secret("DATABASE_URL"))
	if len(e.errs) > failed {
		return nil
	}
	cfg, err := e.parseURL(value)
	if err != nil {
		e.wrong("DATABASE_URL %w", err)
		return nil
	}
	cfg.RuntimeParams["application_name"] = cmp.Or(cfg.RuntimeParams["application_name"], "footfall/"+thisBuild().Version)
	postgres.SetTimeouts(cfg)
	return cfg
}

const urlForm = "postgres://user:password@host:5432/database"

// errUnencoded does not say where: that may be a part of the password.
var errUnencoded = errors.New("must be " + urlForm + ", with characters such as @ : / ? # % in the password percent-encoded")

// parseURL reads a DATABASE_URL. What is left of a password that was not
// percent-encoded may end up in any place of it, so no error repeats a part of
// the URL but parameters whose names and values are none of the password.
func (e *env) parseURL(value string) (*pgx.ConnConfig, error) {
	scheme := databaseScheme.FindString(value)
	switch {
	case value == "":
		return nil, errors.New("is not set; set it to " + urlForm)
	case strings.ContainsRune(value, 0):
		return nil, errors.New("is UTF-16; save the file as UTF-8")
	case strings.HasPrefix(value, "\ufeff"):
		return nil, errors.New("begins with a byte order mark; save the file as UTF-8 without one")
	case strings.ContainsAny(value, "\r\n"):
		return nil, errors.New("has several lines; it must be one")
	case strings.ContainsAny(value[:1], `"'`) || strings.HasPrefix(value, "“"):
		return nil, errors.New("begins with a quotation mark; write it without")
	case strings.HasPrefix(strings.TrimPrefix(value, "export "), "DATABASE_URL="):
		return nil, errors.New("begins with DATABASE_URL=; write only what follows the equals sign")
	case scheme == "":
		return nil, errors.New("must start with postgres:// or postgresql://, such as " + urlForm)
	}
	value = value[len(scheme):]
	// The driver, like libpq, ends the password at the first @ or /. One that
	// holds either leaves an @ behind.
	at := strings.LastIndexByte(value, '@')
	if at > 0 && strings.ContainsAny(value[:at], "@/") {
		return nil, errUnencoded
	}
	hosts, query, _ := strings.Cut(value[at+1:], "?")
	base := "postgres://" + value[:at+1] + hosts + "?"
	if hosts == "" || hosts[0] == '/' { // libpq needs no host then
		query = strings.Replace(query, "hostaddr=", "host=", 1)
	}
	parameters, err := e.parameters(query)
	if err != nil {
		return nil, err
	}
	cfg, err := pgx.ParseConfig(base + strings.Join(parameters, "&"))
	if err == nil {
		return cfg, nil
	}
	// The parameter at fault is the one without which the rest is right.
	for i, p := range parameters {
		rest := slices.Delete(slices.Clone(parameters), i, i+1)
		if _, restErr := pgx.ParseConfig(base + strings.Join(rest, "&")); restErr == nil {
			name, _, _ := strings.Cut(p, "=")
			cause := errors.New("see \"Parameter Key Words\" in PostgreSQL's manual")
			if strings.HasPrefix(name, "ssl") && name != "sslpassword" { // files; any other value may be a secret under a mistyped name
				cause = errors.Unwrap(err)
			}
			return nil, fmt.Errorf("has a wrong value for %s: %w", name, cause)
		}
	}
	if _, err := pgx.ParseConfig("postgres://"); err != nil { // the URL is not in this error
		_, cause, _ := strings.Cut(err.Error(), "`: ")
		return nil, fmt.Errorf("is right, but a variable PG… of the environment is not; correct or unset it: %s", cause)
	}
	return nil, errUnencoded
}

// parameterName keeps what may be a part of a password out of messages.
var parameterName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// parameters returns what is left for the driver: what it knows itself, and what
// it sends to PostgreSQL as a setting.
func (e *env) parameters(query string) ([]string, error) {
	var left []string
	secret := false
	for pair := range strings.SplitSeq(query, "&") {
		name, _, found := strings.Cut(pair, "=")
		switch use := foreign(name, pair); {
		case pair == "":
		case secret, !found, !parameterName.MatchString(name):
			return nil, errors.New("must have name=value between ? and &, the password last and with & as %26 and = as %3D in it")
		case use == "":
			left = append(left, pair)
			secret = name == "password" || name == "sslpassword"
		case use == "ignored":
			e.ignored = append(e.ignored, name)
		case strings.HasPrefix(use, "as "):
			left = slices.Insert(left, 0, use[3:]) // what is said in our own words counts more
		case use != "dropped":
			return nil, fmt.Errorf("has the parameter %s: %s", name, use)
		}
	}
	return left, nil
}

// foreign says what becomes of a parameter that the driver does not know and
// PostgreSQL would refuse. "dropped": it means nothing here. "ignored": it is for
// another driver, and there is a warning. "as NAME=VALUE": read as that. Else why
// it is refused: most ask for security that would not be there. Those of libpq are in
// PostgreSQL's manual, "Parameter Key Words"; the others are Prisma's, node-postgres' and
// Supabase's.
func foreign(name, pair string) string {
	for _, key := range []string{pair, name} {
		switch key {
		case "fallback_application_name", "gssdelegation", "gssencmode", "gsslib", "hostaddr", "keepalives", "keepalives_count",
			"keepalives_idle", "keepalives_interval", "load_balance_hosts", "sslcompression", "tcp_user_timeout",
			// crypto/tls takes 1.2 and newer.
			"ssl_min_protocol_version=TLSv1", "ssl_min_protocol_version=TLSv1.1", "ssl_min_protocol_version=TLSv1.2":
			return "dropped"
		case "connection_limit", "pgbouncer", "pool_timeout", "schema=public", "socket_timeout", "statement_cache_size", "supa", "uselibpqcompat":
			return "ignored"
		case "pgbouncer=true":
			return "as default_query_exec_mode=exec"
		case "ssl=true":
			return "as sslmode=require"
		case "schema":
			return "write search_path instead"
		case "ssl", "sslaccept", "sslmode=no-verify":
			return "write sslmode=require instead, or sslmode=verify-full to check the certificate"
		case "gssencmode=require", "requirepeer", "ssl_max_protocol_version", "ssl_min_protocol_version", "sslcrl", "sslcrldir":
			return "it cannot be kept; remove it"
		}
	}
	return ""
}

// notOfURI is what no URI holds as it is (RFC 3986, section 2). Browsers forgive
// it, readers of security.txt need not.
var notOfURI = regexp.MustCompile(`[^A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]`)

func (e *env) link(key string) string {
	v := e.str(key, "")
	if v == "" {
		return ""
	}
	u, err := url.Parse(v)
	if _, escapes := url.PathUnescape(v); err == nil && escapes == nil {
		v = notOfURI.ReplaceAllStringFunc(v, url.PathEscape)
		switch {
		case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "",
			u.Scheme == "mailto" && u.Opaque != "":
			return v
		}
	}
	e.wrong("%s is %q; it must start with https://, http:// or mailto:", key, v)
	return ""
}

func (e *env) listenAddr() string {
	if port := e.str("PORT", ""); port != "" && e.str("LISTEN_ADDR", "") == "" {
		if !isPort(port) {
			e.wrong("PORT is %q; it must be a number up to 65535", port)
		}
		return ":" + port
	}
	v := e.str("LISTEN_ADDR", ":8080")
	if path, ok := strings.CutPrefix(v, "unix:"); ok {
		// sun_path of sockaddr_un holds 108 bytes with the closing zero (unix(7)).
		if !filepath.IsAbs(path) || len(path) > 107 {
			e.wrong("LISTEN_ADDR is %q; it must be unix: and an absolute path of at most 107 bytes", v)
		}
		return v
	}
	if _, port, err := net.SplitHostPort(v); err != nil || !isPort(port) {
		e.wrong("LISTEN_ADDR is %q; it must be host:port, :port or unix:/path", v)
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
			e.wrong("%s has %q; it must be networks such as 10.0.0.0/8, 2001:db8::/32, separated by commas", key, part)
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
	if len(v) < visitor.MinKey {
		e.wrong("VISITOR_KEY has %d bytes; it must have at least %d, such as the output of: openssl rand -hex 32", len(v), visitor.MinKey)
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
		e.wrong(`%s is %q; it must be a duration such as "10s"`, key, v)
	}
	return d
}

func (e *env) oneOf(key string, allowed ...string) string {
	v := e.str(key, allowed[0])
	if !slices.Contains(allowed, v) {
		e.wrong("%s is %q; it must be one of: %s", key, v, strings.Join(allowed, ", "))
	}
	return v
}

func (e *env) level(key string) (level slog.Level) {
	level.UnmarshalText([]byte(e.oneOf(key, "info", "debug", "warn", "error"))) // each is a level
	return level
}
