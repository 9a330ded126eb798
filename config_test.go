package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf16"

	"footfall/internal/postgres"

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
		"USER_NAME", " Ada\xff ",
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
		UserName:   "Ada\uFFFD",
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
	const (
		wantListen = `; it must be host:port, :port or unix:/path`
		wantUnix   = `; it must be unix: and an absolute path of at most 107 bytes`
		wantLink   = `; it must start with https://, http:// or mailto:`
		wantNet    = `; it must be networks such as 10.0.0.0/8, 2001:db8::/32, separated by commas`
		wantTime   = `; it must be a duration such as "10s"`
		badURL     = `DATABASE_URL must be postgres://user:password@host:5432/database, with characters such as @ : / ? # % in the password percent-encoded`
	)
	tests := map[string]struct{ key, value, want string }{
		"no database":            {"DATABASE_URL", "", `DATABASE_URL is not set; set it to postgres://user:password@host:5432/database`},
		"another database":       {"DATABASE_URL", "mysql://u:hunter2@h/d", wantScheme},
		"key and value":          {"DATABASE_URL", "host=h password=hunter2", wantScheme},
		"scheme forgotten":       {"DATABASE_URL", "u:hunter2@h/d", wantScheme},
		"@ forgotten":            {"DATABASE_URL", "postgres://u:hunter2/d", badURL},
		"sign in the password":   {"DATABASE_URL", "postgres://u:hunter2%zz@h/d", badURL},
		"slash in the password":  {"DATABASE_URL", "postgres://u:hunter2/x@h/d", badURL},
		"escape in a parameter":  {"DATABASE_URL", "postgres://u@h/d?password=hunter2%zz", "DATABASE_URL has a wrong value for password: see \"Parameter Key Words\" in PostgreSQL's manual"},
		"port":                   {"DATABASE_URL", "postgres://u:hunter2@h:99999/d", badURL},
		"sslmode":                {"DATABASE_URL", "postgres://u:hunter2@h/d?sslmode=hunter", "DATABASE_URL has a wrong value for sslmode: sslmode is invalid"},
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
		"PORT":                   {"PORT", "http!", `PORT is "http!"; it must be a number up to 65535`},
		"proxy's name":           {"TRUSTED_PROXIES", "10.0.0.0/8,nginx", `TRUSTED_PROXIES has "nginx"` + wantNet},
		"proxies, comma":         {"TRUSTED_PROXIES", "10.0.0.0/8,", `TRUSTED_PROXIES has ""` + wantNet},
		"proxies, bits":          {"TRUSTED_PROXIES", "10.0.0.0/33", `TRUSTED_PROXIES has "10.0.0.0/33"` + wantNet},
		"proxies, zone":          {"TRUSTED_PROXIES", "fe80::1%eth0", `TRUSTED_PROXIES has "fe80::1%eth0"` + wantNet},
		"short key":              {"VISITOR_KEY", "hunter2", `VISITOR_KEY has 7 bytes; it must have at least 32, such as the output of: openssl rand -hex 32`},
		"negative delay":         {"SHUTDOWN_DELAY", "-1s", `SHUTDOWN_DELAY is "-1s"` + wantTime},
		"no unit":                {"SHUTDOWN_TIMEOUT", "10", `SHUTDOWN_TIMEOUT is "10"` + wantTime},
		"no time to stop":        {"SHUTDOWN_TIMEOUT", "0s", `SHUTDOWN_TIMEOUT is "0s"` + wantTime},
		"log format":             {"LOG_FORMAT", "xml", `LOG_FORMAT is "xml"; it must be one of: json, text`},
		"log level":              {"LOG_LEVEL", "INFO", `LOG_LEVEL is "INFO"; it must be one of: info, debug, warn, error`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := loadConfig(func(key string) string {
				switch {
				case key == tt.key:
					return tt.value
				case key == "DATABASE_URL":
					return "postgres://localhost"
				}
				return ""
			})
			require.Error(t, err)
			assert.EqualError(t, err, tt.want)
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

// The forms of a URL that hosts of PostgreSQL and other drivers hand out: from
// their own pages on connecting, read in November 2026.
func TestURLsOfProviders(t *testing.T) {
	t.Parallel()
	const exec = "exec"
	for name, tt := range map[string]struct {
		url     string
		tls     string // disable, prefer, require, verify-full
		mode    string // how statements are sent; empty: prepared
		ignored string
		refused string // what the message says
	}{
		"Supabase, direct":             {url: "postgresql://postgres:pw@db.abcdefgh.supabase.co:5432/postgres", tls: "prefer"},
		"Supabase, session pooler":     {url: "postgres://postgres.abcdefgh:pw@aws-0-eu-central-1.pooler.supabase.com:5432/postgres", tls: "prefer"},
		"Supabase, transaction pooler": {url: "postgresql://postgres.abcdefgh:pw@aws-0-eu-central-1.pooler.supabase.com:6543/postgres?pgbouncer=true", tls: "prefer", mode: exec},
		"Supabase by Vercel":           {url: "postgres://postgres.abcdefgh:pw@aws-0-us-east-1.pooler.supabase.com:6543/postgres?sslmode=require&supa=base-pooler.x", tls: "require", ignored: "supa"},
		"Supabase by Vercel, Prisma":   {url: "postgres://postgres.abcdefgh:pw@aws-0-us-east-1.pooler.supabase.com:6543/postgres?sslmode=require&pgbouncer=true", tls: "require", mode: exec},
		"Neon":                         {url: "postgresql://alex:pw@ep-cool-darkness-123456-pooler.us-east-2.aws.neon.tech/neondb?sslmode=require&channel_binding=require", tls: "require"},
		"Neon, without SNI":            {url: "postgresql://alex:pw@ep-cool-darkness-123456.us-east-2.aws.neon.tech/neondb?sslmode=require&options=endpoint%3Dep-cool-darkness-123456", tls: "require"},
		"Vercel":                       {url: "postgres://default:pw@ep-x-pooler.us-east-1.postgres.vercel-storage.com:5432/verceldb?pgbouncer=true&connect_timeout=15&sslmode=require", tls: "require", mode: exec},
		"Heroku":                       {url: "postgres://u1:pw@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d1", tls: "prefer"},
		"Heroku, JDBC":                 {url: "postgres://u1:pw@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d1?ssl=true", tls: "require"},
		"Heroku, node":                 {url: "postgres://u1:pw@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d1?sslmode=no-verify", refused: "sslmode: write sslmode=require"},
		"Heroku, node, ssl":            {url: "postgres://u1:pw@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d1?ssl=no-verify", refused: "ssl: write sslmode=require"},
		"Render":                       {url: "postgresql://u:pw@dpg-abc-a.frankfurt-postgres.render.com/count", tls: "prefer"},
		"Fly":                          {url: "postgres://app:pw@top2.nearest.of.app-db.internal:5432/app?sslmode=disable", tls: "disable"},
		"Fly, flycast":                 {url: "postgres://postgres:pw@app-db.flycast:5432", tls: "prefer"},
		"RDS":                          {url: "postgres://u:pw@count.abc.eu-central-1.rds.amazonaws.com:5432/count?sslmode=verify-full&sslrootcert=system", tls: "verify-full"},
		"RDS, bundle not there":        {url: "postgres://u:pw@count.abc.eu-central-1.rds.amazonaws.com:5432/count?sslmode=verify-full&sslrootcert=/no/bundle.pem", refused: "sslrootcert: unable to read CA file: open /no/bundle.pem"},
		"Azure":                        {url: "postgresql://ada:pw@count.postgres.database.azure.com:5432/postgres?sslmode=require", tls: "require"},
		"Azure, single server":         {url: "postgresql://ada%40count:pw@count.postgres.database.azure.com:5432/postgres?sslmode=require", tls: "require"},
		"Azure, not encoded":           {url: "postgresql://ada@count:pw@count.postgres.database.azure.com:5432/postgres?sslmode=require", refused: "percent-encoded"},
		"DigitalOcean":                 {url: "postgresql://doadmin:pw@db-postgresql-fra1-1-do-user-1-0.b.db.ondigitalocean.com:25060/defaultdb?sslmode=require", tls: "require"},
		"Prisma":                       {url: "postgresql://ada:pw@localhost:5432/count?schema=public", tls: "prefer", ignored: "schema"},
		"Prisma, its pool":             {url: "postgresql://ada:pw@localhost:5432/count?connection_limit=5&pool_timeout=2&socket_timeout=3&statement_cache_size=0&pgbouncer=false", tls: "prefer", ignored: "connection_limit pool_timeout socket_timeout statement_cache_size pgbouncer"},
		"Prisma, another schema":       {url: "postgresql://ada:pw@localhost:5432/count?schema=stats", refused: "schema: write search_path"},
		"Prisma, TLS":                  {url: "postgresql://ada:pw@localhost:5432/count?sslaccept=strict", refused: "sslaccept: write sslmode=require"},
		"Prisma Postgres":              {url: "postgres://ada:pw@db.prisma.io:5432/?sslmode=require", tls: "require"},
		"Prisma Accelerate":            {url: "prisma+postgres://accelerate.prisma-data.net/?api_key=SECRET", refused: "must start with postgres://"},
		"node, as libpq":               {url: "postgres://u:pw@db/count?uselibpqcompat=true&sslmode=require", tls: "require", ignored: "uselibpqcompat"},
		"JDBC, plain words win":        {url: "postgres://u:pw@db/count?sslmode=verify-full&ssl=true", tls: "verify-full"},

		"libpq's own": {url: "postgres://u:pw@db/count?keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3&tcp_user_timeout=9&gssencmode=prefer&gsslib=gssapi&gssdelegation=0" +
			"&load_balance_hosts=random&sslcompression=0&fallback_application_name=psql&hostaddr=192.0.2.1&ssl_min_protocol_version=TLSv1.2", tls: "prefer"},
		"Kerberos":                 {url: "postgres://u:pw@db/count?gssencmode=require", refused: "gssencmode: it cannot be kept"},
		"who the server is":        {url: "postgres:///count?requirepeer=postgres", refused: "requirepeer: it cannot be kept"},
		"revoked certificates":     {url: "postgres://u:pw@db/count?sslcrl=/etc/crl.pem", refused: "sslcrl: it cannot be kept"},
		"TLS 1.3 and nothing else": {url: "postgres://u:pw@db/count?ssl_min_protocol_version=TLSv1.3", refused: "ssl_min_protocol_version: it cannot be kept"},
		"a wrong time":             {url: "postgres://u:pw@db/count?connect_timeout=10s", refused: "connect_timeout: "},
		"a wrong choice":           {url: "postgres://u:pw@db/count?sslmode=require&target_session_attrs=readwrite", refused: "target_session_attrs: "},
		"half a certificate":       {url: "postgres://u:pw@db/count?sslcert=/etc/c.pem", refused: `sslcert: both "sslcert" and "sslkey" are required`},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := loadConfig(environment("DATABASE_URL", tt.url))
			if tt.refused != "" {
				require.ErrorContains(t, err, tt.refused)
				assert.NotContains(t, err.Error(), "SECRET")
				return
			}
			require.NoError(t, err)
			u, err := url.Parse(tt.url)
			require.NoError(t, err)
			assert.Equal(t, u.Hostname(), cfg.Database.Host)
			assert.Equal(t, "pw", cfg.Database.Password)
			assert.Equal(t, tt.ignored, strings.Join(cfg.Ignored, " "))
			mode := "cache statement"
			if tt.mode != "" {
				mode = tt.mode
			}
			assert.Equal(t, mode, cfg.Database.DefaultQueryExecMode.String())
			got := "disable"
			switch tls := cfg.Database.TLSConfig; {
			case tls != nil && !tls.InsecureSkipVerify:
				got = "verify-full"
			case tls != nil && len(cfg.Database.Fallbacks) > 0:
				got = "prefer"
			case tls != nil:
				got = "require"
			}
			assert.Equal(t, tt.tls, got)
			// PostgreSQL refuses a connection with a parameter that it does not know.
			for name := range cfg.Database.RuntimeParams {
				assert.Contains(t, []string{"application_name", "options"}, name)
			}
		})
	}
}

// An address without a name is where to connect, as libpq has it.
func TestHostaddrAlone(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "192.0.2.1", connConfig(t, "postgres:///count?hostaddr=192.0.2.1").Host)
}

// What is wrong with the environment of PostgreSQL's own programs is not blamed
// on the URL.
func TestPostgresEnvironment(t *testing.T) {
	t.Setenv("PGCONNECT_TIMEOUT", "10s")
	_, err := loadConfig(environment("DATABASE_URL", "postgres://u:SECRET@db/count"))
	assert.ErrorContains(t, err, "a variable PG… of the environment is not; correct or unset it: invalid connect_timeout")
	assert.NotContains(t, err.Error(), "SECRET")
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

// saidOf returns all that the program says about its settings: why it refuses
// them, or what its commands and its log say when nothing answers there.
func saidOf(t testing.TB, getenv func(string) string) (said string, refused bool) {
	t.Helper()
	cfg, err := loadConfig(getenv)
	if err != nil {
		return err.Error(), true
	}
	nowhere := &net.DNSError{Err: "no such host", IsNotFound: true}
	cfg.Database.LookupFunc = func(_ context.Context, host string) ([]string, error) {
		if strings.Contains(host, "127.0.0.1") {
			return []string{host}, nil
		}
		nowhere.Name = host
		return nil, nowhere
	}
	cfg.Database.DialFunc = func(_ context.Context, network, address string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s: %w", address, syscall.ECONNREFUSED)}
	}
	var out bytes.Buffer
	if err := postgres.Explain(verifyCommand(t.Context(), cfg, &out, false)); err != nil {
		fmt.Fprintln(&out, err)
	}
	// The service tries on until it is told to stop, after its first warning.
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	s := newServer(cfg, newLogger(cfg, io.MultiWriter(&out, writerFunc(func(line []byte) (int, error) {
		if bytes.Contains(line, []byte("not ready yet")) {
			stop()
		}
		return len(line), nil
	}))))
	defer s.store.close()
	if err := s.prepare(ctx); err != nil {
		fmt.Fprintln(&out, postgres.Explain(err))
	}
	return out.String(), false
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// Whatever a password holds and wherever it stands, no part of it is said. One
// that is not percent-encoded where it must be is refused.
func TestPasswordIsNotSaid(t *testing.T) {
	t.Parallel()
	for password, understood := range map[string]bool{
		"SECRET": true, "SECRET%40SECRET": true, "%53ECRET": true,
		"hunter@SECRET": false, "SECRET@": false, "@SECRET": false, "a@SECRET@b": false, "SECRET@b@c:1": false,
		"123/SECRET": false, "/SECRET": false, "12/3@SECRET": false, "SECRET/": false, "12/x?host=SECRET": false,
		"1/SECRET?sslmode=disable&x=": false, "1/?application_name=SECRET": false, "1/SECRET#": false,
		"1,2/SECRET": false, "1,SECRET": true, "SECRET,127.0.0.1:2": true,
		"SECRET%zz": false, "SECRET%": false, "SEC RET": false, "SECRET%00": false, "SECRET\nSECRET": false,
		"SECRET:1": true, "SECRET#1": true, "SECRET?a=b": true, "SECRET&a=b": true, "[SECRET": true, "SECRET]": true,
		"SECRET;": true, "SECRET=": true, "SECRET+": true, "SECRET$1": true, `"SECRET"`: true, "'SECRET'": true, `\SECRET`: true,
		"SECRET|^{}<>`~!*()": true, "SECRETäß漢": true,
	} {
		t.Run(password, func(t *testing.T) {
			t.Parallel()
			for _, scheme := range []string{"postgres://", "postgresql://", "postgresql+psycopg2://"} {
				value := scheme + "app:" + password + "@127.0.0.1:1/app"
				said, refused := saidOf(t, environment("DATABASE_URL", value))
				assert.NotContains(t, said, "SECRET")
				assert.Equal(t, !understood, refused, said)
				if refused && !strings.Contains(password, "\n") {
					assert.Contains(t, said, "percent-encoded")
				}
				said, _ = saidOf(t, environment("DATABASE_URL", value+"?sslmode=disable"))
				assert.NotContains(t, said, "SECRET")
				said, _ = saidOf(t, environment("DATABASE_URL", scheme+"127.0.0.1:1/app?user=app&password="+password))
				assert.NotContains(t, said, "SECRET")
				said, _ = saidOf(t, environment("DATABASE_URL", scheme+"127.0.0.1:1/app?user=app&password="+password+"&sslmode=disable"))
				assert.NotContains(t, said, "SECRET")
			}
		})
	}
}

// A secret that stands where the name of its file belongs is not said either,
// nor is what else a file holds.
func TestSecretInTheWrongPlaceIsNotSaid(t *testing.T) {
	t.Parallel()
	const url = "postgres://app:SECRET@127.0.0.1:1/app"
	for name, tt := range map[string]struct{ key, value, want string }{
		"URL as a file's name":      {"DATABASE_URL_FILE", url, "DATABASE_URL_FILE must name a file that holds the secret: no such file or directory"},
		"key as a file's name":      {"VISITOR_KEY_FILE", strings.Repeat("SECRET", 50), "VISITOR_KEY_FILE must name a file that holds the secret: file name too long"},
		"folder":                    {"VISITOR_KEY_FILE", t.TempDir(), "VISITOR_KEY_FILE must name a file that holds the secret: is a directory"},
		"empty file":                {"DATABASE_URL_FILE", testFile(t, "SECRET", " \n"), "DATABASE_URL_FILE names an empty file: write the secret into it or unset DATABASE_URL_FILE"},
		"two lines":                 {"DATABASE_URL_FILE", testFile(t, "url", url+"\npostgres://SECRET"), "DATABASE_URL has several lines; it must be one"},
		"a comment above":           {"DATABASE_URL_FILE", testFile(t, "url", "# SECRET\n"+url+"\n"), "DATABASE_URL has several lines; it must be one"},
		"quotes":                    {"DATABASE_URL", `"` + url + `"`, "DATABASE_URL begins with a quotation mark; write it without"},
		"single quotes":             {"DATABASE_URL", "'" + url + "'", "DATABASE_URL begins with a quotation mark; write it without"},
		"typographic quotes":        {"DATABASE_URL", "“" + url + "”", "DATABASE_URL begins with a quotation mark; write it without"},
		"byte order mark":           {"DATABASE_URL_FILE", testFile(t, "url", "\ufeff"+url), "DATABASE_URL begins with a byte order mark; save the file as UTF-8 without one"},
		"UTF-16, little endian":     {"DATABASE_URL_FILE", testFile(t, "url", utf16Of(binary.LittleEndian, "\ufeff"+url)), "DATABASE_URL is UTF-16; save the file as UTF-8"},
		"UTF-16, big endian":        {"DATABASE_URL_FILE", testFile(t, "url", utf16Of(binary.BigEndian, "\ufeff"+url)), "DATABASE_URL is UTF-16; save the file as UTF-8"},
		"UTF-16, no mark":           {"DATABASE_URL_FILE", testFile(t, "url", utf16Of(binary.LittleEndian, url+"\n")), "DATABASE_URL is UTF-16; save the file as UTF-8"},
		"its own name":              {"DATABASE_URL", "DATABASE_URL=" + url, "DATABASE_URL begins with DATABASE_URL=; write only what follows the equals sign"},
		"its own name in a file":    {"DATABASE_URL_FILE", testFile(t, "url", "export DATABASE_URL="+url), "DATABASE_URL begins with DATABASE_URL=; write only what follows the equals sign"},
		"the command that connects": {"DATABASE_URL", "psql '" + url + "'", wantScheme},
		"JDBC":                      {"DATABASE_URL", "jdbc:postgresql://127.0.0.1:1/app?user=app&password=SECRET", wantScheme},
		"upper case":                {"DATABASE_URL", "POSTGRES://app:SECRET@127.0.0.1:1/app", wantScheme},
		"a colon forgotten":         {"DATABASE_URL", "postgres//app:SECRET@127.0.0.1:1/app", wantScheme},
	} {
		t.Run(name, func(t *testing.T) {
			said, refused := saidOf(t, func(key string) string {
				switch {
				case key == tt.key:
					return tt.value
				case key == "DATABASE_URL" && tt.key == "VISITOR_KEY_FILE":
					return "postgres://127.0.0.1:1"
				}
				return ""
			})
			assert.True(t, refused)
			assert.Equal(t, tt.want, said)
		})
	}
}

const wantScheme = "DATABASE_URL must start with postgres:// or postgresql://, such as postgres://user:password@host:5432/database"

func utf16Of(order binary.ByteOrder, text string) string {
	var b []byte
	for _, unit := range utf16.Encode([]rune(text)) {
		b = binary.BigEndian.AppendUint16(b, unit)
		if order == binary.LittleEndian {
			b[len(b)-2], b[len(b)-1] = b[len(b)-1], b[len(b)-2]
		}
	}
	return string(b)
}

// All that the program says about any DATABASE_URL, also when it connects in
// vain, holds no part of the password: its parts are these, with anything
// between them and around.
func FuzzPasswordIsNotSaid(f *testing.F) {
	parts := []string{"hunter22", "swordfish", "opensesame"}
	f.Add("u", "@", "/", "", "")
	f.Add("u", "/", "?", "", "?sslmode=disable")
	f.Add("u", "/", "?sslmode=disable&x=", "", "")
	f.Add("u@x", ",", ":1@", "sslmode=disable&", "&connect_timeout=1")
	f.Add("", "&", "=", "application_name=a&", "&search_path=public")
	f.Add("u:", "#", "%", "", "%zz")
	f.Add("u", "&host=", "&dbname=", "", "")
	f.Add("u", "\n", " ", "", "")
	f.Add("u", "0", " ", "mistyped_", "")
	f.Fuzz(func(t *testing.T, user, one, two, before, after string) {
		rest := user + before + after
		password := parts[0] + one + parts[1] + two + parts[2]
		values := []string{
			"postgres://" + user + ":" + password + "@127.0.0.1:1/app" + after,
			"postgres://" + user + ":" + password + "@nowhere/app" + after,
		}
		// Under a mistyped name nobody knows where a password with & ends.
		if strings.HasSuffix("&"+before, "&") || !strings.Contains(one+two, "&") {
			values = append(values,
				"postgres://u@127.0.0.1:1/app?"+before+"password="+password+after,
				"postgres://u@127.0.0.1:1/app?"+before+"sslpassword="+password+after)
		}
		for _, value := range values {
			for _, key := range []string{"DATABASE_URL", "DATABASE_URL_FILE"} {
				said, _ := saidOf(t, environment(key, value))
				for _, part := range parts {
					if !strings.Contains(rest, part) {
						assert.NotContains(t, said, part, value)
					}
				}
				for line := range strings.Lines(said) {
					assert.NotContains(t, strings.TrimSuffix(line, "\n"), "\n")
				}
			}
		}
	})
}
