package main

import (
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLoadConfigDefaults(t *testing.T) {
	t.Parallel()
	cfg, err := loadConfig(environment("DATABASE_URL", "postgres://u:p@db.example/count"))
	require.NoError(t, err)
	assert.Equal(t, "count", cfg.Database.Database)
	assert.Equal(t, "db.example", cfg.Database.Host)
	assert.Equal(t, uint16(5432), cfg.Database.Port)
	cfg.Database = nil // holds functions, which have no equals
	assert.Equal(t, config{
		UserName:        "n/a",
		ListenAddr:      ":8080",
		TrustedProxies:  []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		ShutdownTimeout: 10 * time.Second,
		LogFormat:       "json",
		LogLevel:        slog.LevelInfo,
	}, cfg)
}

func TestLoadConfigEverySetting(t *testing.T) {
	t.Parallel()
	cfg, err := loadConfig(environment(
		"DATABASE_URL_FILE", testFile(t, "url", "postgresql+psycopg2://u:p@db:6432/count\n"),
		"USER_NAME", " Ada ",
		"USER_URL", "mailto:ada@example.org",
		"LISTEN_ADDR", "unix:/run/footfall/web.sock",
		"PORT", "99",
		"TRUSTED_PROXIES", "10.0.0.0/8, 192.0.2.1 ,2001:db8::/32,::ffff:172.16.0.0/108, 2001:db8:1::1",
		"IGNORED_NETWORKS", "192.0.2.0/24, 64:ff9b::203.0.113.9",
		"VISITOR_KEY_FILE", testFile(t, "key", strings.Repeat("k", 32)+"\n"),
		"SHUTDOWN_DELAY", "1m",
		"SHUTDOWN_TIMEOUT", "250ms",
		"LOG_FORMAT", "text",
		"LOG_LEVEL", "debug",
	))
	require.NoError(t, err)
	assert.Equal(t, "count", cfg.Database.Database)
	assert.Equal(t, uint16(6432), cfg.Database.Port)
	cfg.Database = nil
	assert.Equal(t, config{
		UserName:   "Ada",
		UserURL:    "mailto:ada@example.org",
		ListenAddr: "unix:/run/footfall/web.sock",
		TrustedProxies: []netip.Prefix{
			netip.MustParsePrefix("10.0.0.0/8"),
			netip.MustParsePrefix("192.0.2.1/32"),
			netip.MustParsePrefix("2001:db8::/32"),
			netip.MustParsePrefix("172.16.0.0/12"),
			netip.MustParsePrefix("2001:db8:1::1/128"),
		},
		IgnoredNetworks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("203.0.113.9/32")},
		VisitorKey:      []byte(strings.Repeat("k", 32)),
		ShutdownDelay:   time.Minute,
		ShutdownTimeout: 250 * time.Millisecond,
		LogFormat:       "text",
		LogLevel:        slog.LevelDebug,
	}, cfg)
}

func TestLoadConfigUnderstands(t *testing.T) {
	t.Parallel()
	for key, values := range map[string][]string{
		"DATABASE_URL": {
			"postgres://localhost", "postgresql://u@/count?host=/run/postgresql", "postgresql+asyncpg://u:p%40@h/d",
			"postgres://u:p#w@h/d", "postgres://a,b:5433/count?target_session_attrs=read-write", "postgres://u@[2001:db8::1]:5432/count", " postgres://h/d\n",
		},
		"LISTEN_ADDR": {":0", "127.0.0.1:80", "[::1]:65535", "localhost:8080", "unix:/" + strings.Repeat("s", 106)},
		"PORT":        {"0", "8080", "65535"},
		"USER_URL":    {"https://example.org/~ada", "http://example.org", "HTTPS://EXAMPLE.ORG", "mailto:a@example.org"},
		"LOG_LEVEL":   {"debug", "info", "warn", "error"},
		"VISITOR_KEY": {strings.Repeat("é", 16), strings.Repeat("k", 500)},
	} {
		for _, value := range values {
			t.Run(key+" "+value, func(t *testing.T) {
				_, err := loadConfig(func(k string) string {
					if k == key {
						return value
					}
					return environment("DATABASE_URL", "postgres://localhost")(k)
				})
				assert.NoError(t, err)
			})
		}
	}
}

func TestLoadConfigRefuses(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "missing")
	empty := testFile(t, "empty", " \n")
	const (
		wantListen = `, want host:port, :port or unix:/path`
		wantUnix   = `, want unix: and an absolute path of at most 107 bytes`
		wantLink   = `, want an address that begins with https://, http:// or mailto:`
		wantNet    = `, want networks such as 10.0.0.0/8, 2001:db8::/32, with commas between`
		wantTime   = `, want a duration such as "10s"`
		wantURL    = `want postgres://user:password@host:5432/database, with signs such as @ : / ? # % in the password percent-encoded`
		badScheme  = `DATABASE_URL has the wrong scheme, want postgres://user:password@host:5432/database`
		badURL     = `DATABASE_URL is not understood: ` + wantURL
	)
	tests := map[string]struct{ key, value, want string }{
		"no database":            {"DATABASE_URL", "", `DATABASE_URL is not set, want postgres://user:password@host:5432/database`},
		"another database":       {"DATABASE_URL", "mysql://u:hunter2@h/d", badScheme},
		"key and value":          {"DATABASE_URL", "host=h password=hunter2", badScheme},
		"scheme forgotten":       {"DATABASE_URL", "u:hunter2@h/d", badScheme},
		"@ forgotten":            {"DATABASE_URL", "postgres://u:hunter2/d", badURL},
		"sign in the password":   {"DATABASE_URL", "postgres://u:hunter2%zz@h/d", badURL},
		"slash in the password":  {"DATABASE_URL", "postgres://u:hunter2/x@h/d", badURL},
		"escape in a parameter":  {"DATABASE_URL", "postgres://u@h/d?password=hunter2%zz", badURL},
		"port":                   {"DATABASE_URL", "postgres://u:hunter2@h:99999/d", "DATABASE_URL is not understood: "},
		"sslmode":                {"DATABASE_URL", "postgres://u:hunter2@h/d?sslmode=hunter", "DATABASE_URL is not understood: sslmode is invalid"},
		"no such file":           {"DATABASE_URL_FILE", missing, "DATABASE_URL_FILE: open " + missing + ": no such file or directory"},
		"empty file":             {"DATABASE_URL_FILE", empty, "DATABASE_URL_FILE: " + empty + " is empty"},
		"script as link":         {"USER_URL", "javascript:alert(1)", `USER_URL is "javascript:alert(1)"` + wantLink},
		"no host in link":        {"USER_URL", "https://", `USER_URL is "https://"` + wantLink},
		"no scheme in link":      {"USER_URL", "example.org", `USER_URL is "example.org"` + wantLink},
		"nobody in mailto":       {"USER_URL", "mailto:", `USER_URL is "mailto:"` + wantLink},
		"link is no URL":         {"USER_URL", "https://%zz", `USER_URL is "https://%zz"` + wantLink},
		"port alone":             {"LISTEN_ADDR", "8080", `LISTEN_ADDR is "8080"` + wantListen},
		"no port":                {"LISTEN_ADDR", "localhost:", `LISTEN_ADDR is "localhost:"` + wantListen},
		"port too high":          {"LISTEN_ADDR", ":65536", `LISTEN_ADDR is ":65536"` + wantListen},
		"relative socket":        {"LISTEN_ADDR", "unix:web.sock", `LISTEN_ADDR is "unix:web.sock"` + wantUnix},
		"socket's path too long": {"LISTEN_ADDR", "unix:/" + strings.Repeat("s", 107), `LISTEN_ADDR is "unix:/` + strings.Repeat("s", 107) + `"` + wantUnix},
		"PORT":                   {"PORT", "http!", `PORT is "http!", want a number up to 65535`},
		"proxy's name":           {"TRUSTED_PROXIES", "10.0.0.0/8,nginx", `TRUSTED_PROXIES has "nginx"` + wantNet},
		"proxies, comma":         {"TRUSTED_PROXIES", "10.0.0.0/8,", `TRUSTED_PROXIES has ""` + wantNet},
		"proxies, bits":          {"TRUSTED_PROXIES", "10.0.0.0/33", `TRUSTED_PROXIES has "10.0.0.0/33"` + wantNet},
		"proxies, zone":          {"TRUSTED_PROXIES", "fe80::1%eth0", `TRUSTED_PROXIES has "fe80::1%eth0"` + wantNet},
		"short key":              {"VISITOR_KEY", "hunter2", `VISITOR_KEY has 7 bytes, want at least 32, such as the output of: openssl rand -hex 32`},
		"negative delay":         {"SHUTDOWN_DELAY", "-1s", `SHUTDOWN_DELAY is "-1s"` + wantTime},
		"no unit":                {"SHUTDOWN_TIMEOUT", "10", `SHUTDOWN_TIMEOUT is "10"` + wantTime},
		"no time to stop":        {"SHUTDOWN_TIMEOUT", "0s", `SHUTDOWN_TIMEOUT is "0s"` + wantTime},
		"log format":             {"LOG_FORMAT", "xml", `LOG_FORMAT is "xml", want one of: json, text`},
		"log level":              {"LOG_LEVEL", "INFO", `LOG_LEVEL is "INFO", want one of: info, debug, warn, error`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := loadConfig(func(key string) string {
				switch {
				case key == tt.key:
					return tt.value
				case key == "DATABASE_URL" && tt.key != "DATABASE_URL_FILE":
					return "postgres://localhost"
				}
				return ""
			})
			require.Error(t, err)
			if strings.HasSuffix(tt.want, ": ") {
				assert.ErrorContains(t, err, tt.want)
				assert.NotContains(t, err.Error(), "\n")
			} else {
				assert.EqualError(t, err, tt.want)
			}
			assert.NotContains(t, err.Error(), "hunter2")
		})
	}
}

func TestLoadConfigReportsEveryMistakeAtOnce(t *testing.T) {
	t.Parallel()
	_, err := loadConfig(environment(
		"DATABASE_URL", "postgres://localhost",
		"DATABASE_URL_FILE", "/run/secrets/url",
		"USER_URL", "ftp://example.org",
		"LISTEN_ADDR", "8080",
		"TRUSTED_PROXIES", "a,b",
		"VISITOR_KEY", "short",
		"SHUTDOWN_DELAY", "5",
		"LOG_FORMAT", "xml",
		"LOG_LEVEL", "TRUE",
	))
	require.Error(t, err)
	var keys []string
	for line := range strings.Lines(err.Error()) {
		key, _, _ := strings.Cut(line, " ")
		keys = append(keys, key)
	}
	assert.Equal(t, []string{
		"DATABASE_URL", "USER_URL", "LISTEN_ADDR", "TRUSTED_PROXIES", "TRUSTED_PROXIES",
		"VISITOR_KEY", "SHUTDOWN_DELAY", "LOG_FORMAT", "LOG_LEVEL",
	}, keys)
}

// A dead host must leave time for the next, and an unreachable one must not
// let a start hang for the two minutes that the kernel tries.
func TestConnectTimeout(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		url  string
		want time.Duration
	}{
		"one host":                {"postgres://a/count", 5 * time.Second}, // tried with TLS and without
		"one host, no TLS":        {"postgres://a/count?sslmode=disable", 5 * time.Second},
		"one host, TLS":           {"postgres://a/count?sslmode=require", 5 * time.Second},
		"one socket":              {"postgres:///count?host=/run/postgresql", 5 * time.Second},
		"three hosts":             {"postgres://a,b,c/count", 500 * time.Millisecond},
		"three hosts, no TLS":     {"postgres://a,b,c/count?sslmode=disable", 500 * time.Millisecond},
		"two servers on one host": {"postgres://a:5432,a:5433/count", 500 * time.Millisecond},
		"given":                   {"postgres://a,b/count?connect_timeout=7", 7 * time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, tt.want, connConfig(t, tt.url).ConnectTimeout)
		})
	}
}

// No message holds the password, whatever is around it.
func FuzzLoadConfig(f *testing.F) {
	f.Add("postgres://u:", "@h:5432/d", ":8080", "10.0.0.0/8", "10s")
	f.Add("postgres://u:", "/d", "unix:/a", "::/0,", "-1s")
	f.Add("postgres://u@h/d?password=", "%zz", "8080", "::ffff:1.2.3.4/96", "1h")
	f.Add("postgresql+x://u:%", "#@h/d?sslmode=x", "[::1]:1", "fe80::1%e", "")
	f.Fuzz(func(t *testing.T, before, after, listen, proxies, delay string) {
		const password = "hunter2hunter2"
		cfg, err := loadConfig(environment(
			"DATABASE_URL", before+password+after,
			"LISTEN_ADDR", listen,
			"TRUSTED_PROXIES", proxies,
			"SHUTDOWN_DELAY", delay,
			"VISITOR_KEY", password,
		))
		require.Error(t, err, "the key is too short")
		// As the value of another parameter it is no secret.
		_, query, _ := strings.Cut(before, "?")
		if !strings.Contains(query, "=") || strings.HasSuffix(query, "password=") {
			assert.NotContains(t, err.Error(), password)
		}
		for _, p := range cfg.TrustedProxies {
			assert.False(t, p.Addr().Is4In6() && p.Bits() >= 96, "%s matches no client", p)
		}
		var joined interface{ Unwrap() []error }
		require.True(t, errors.As(err, &joined))
		for _, one := range joined.Unwrap() {
			assert.NotContains(t, one.Error(), "\n", "one line for each")
		}
	})
}
