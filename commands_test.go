package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"footfall/internal/visitor"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWrongUsage(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		`unknown command "count"; see footfall help`:                                     {"count"},
		`unknown command ""; see footfall help`:                                          {""},
		`serve: unexpected argument "now"; see footfall help`:                            {"serve", "now"},
		`version: unexpected argument "-v"; see footfall help`:                           {"version", "-v"},
		`migrate: unexpected argument "-statuss"; see footfall help`:                     {"migrate", "-statuss"},
		`migrate: unexpected argument "-status"; see footfall help`:                      {"migrate", "-status", "-status"},
		`verify: unexpected argument "--all"; see footfall help`:                         {"verify", "--all"},
		`DATABASE_URL is not set; set it to postgres://user:password@host:5432/database`: nil,
	} {
		t.Run(want, func(t *testing.T) {
			var out bytes.Buffer
			err := run(t.Context(), args, environment(), &out)
			require.EqualError(t, err, want)
			_, usage := errors.AsType[*usageError](err)
			assert.True(t, usage)
			assert.Empty(t, out.String())
		})
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"help"}, {"-h"}, {"--help"}, {"serve", "-h"}, {"migrate", "--help"}} {
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), args, environment(), &out))
		assert.Equal(t, helpText, out.String())
	}
	lines := strings.Split(strings.TrimSuffix(helpText, "\n"), "\n")
	assert.LessOrEqual(t, len(lines), 24, "lines of a screen")
	for _, line := range lines {
		assert.LessOrEqual(t, len(line), 80, line)
	}
	// Every setting that the program asks for is explained.
	loadConfig(func(key string) string {
		assert.Contains(t, helpText, key)
		return ""
	})
}

func TestVersionCommand(t *testing.T) {
	t.Parallel()
	for _, arg := range []string{"version", "-v", "-version", "--version"} {
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), []string{arg}, environment(), &out))
		assert.Regexp(t, `^footfall \S+ \(build \S+, commit \S+, \S+, go1\.\d+\S*\)\n$`, out.String())
	}
}

// A wrong setting ends the program with status 2 and a line for each mistake.
func TestExitStatus(t *testing.T) {
	t.Parallel()
	cmd := command(t, []string{"serve"}, "DATABASE_URL", "mysql://u:hunter2@h/d", "LISTEN_ADDR", "8080", "VISITOR_KEY", "hunter2")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Run(), &exit)
	assert.Equal(t, 2, exit.ExitCode())
	assert.Empty(t, out.String())
	assert.Equal(t, `footfall: DATABASE_URL must start with postgres:// or postgresql://, such as postgres://user:password@host:5432/database
footfall: LISTEN_ADDR is "8080"; it must be host:port, :port or unix:/path
footfall: VISITOR_KEY has 7 bytes; it must have at least 32, such as the output of: openssl rand -hex 32
`, errs.String())

	cmd = command(t, []string{"healthcheck"}, "LISTEN_ADDR", "127.0.0.1:1")
	require.ErrorAs(t, cmd.Run(), &exit)
	assert.Equal(t, 1, exit.ExitCode())
	assert.NoError(t, command(t, []string{"help"}).Run())
}

// Whatever is wrong with where DATABASE_URL leads, each command says it in one
// sentence without the password.
func TestUnreachableDatabase(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	db := openTestStore(t, c.URL("footfall")).reads
	execute(t, db, `ALTER ROLE footfall PASSWORD 'rightright'`)
	require.NoError(t, os.WriteFile(filepath.Join(c.Data(), "pg_hba.conf"), []byte("local all all scram-sha-256\n"), 0o600))
	execute(t, db, `SELECT pg_reload_conf()`)
	withPassword := func(user, password, database string) string {
		return "postgres://" + user + ":" + password + "@/" + database + "?host=" + c.Sockets
	}
	eventually(t, "passwords are asked for", func() bool {
		s := openStore(connConfig(t, c.URL("footfall")))
		defer s.close()
		return s.reads.PingContext(t.Context()) != nil
	})
	require.NoError(t, openTestStore(t, withPassword("footfall", "rightright", "footfall")).reads.PingContext(t.Context()))
	tests := map[string]struct {
		url, want    string
		mayGetBetter bool // so serve does not end
	}{
		"password": {withPassword("footfall", "hunter2", "footfall"), "(SQLSTATE 28P01)", false},
		"user":     {withPassword("nobody", "hunter2", "footfall"), `failed SASL auth: FATAL: password authentication failed for user "nobody" (SQLSTATE 28P01)`, false},
		"database": {withPassword("footfall", "rightright", "fotfall"), `FATAL: database "fotfall" does not exist (SQLSTATE 3D000)`, false},
		"port":     {"postgres://u:hunter2@127.0.0.1:1/d", "dial tcp 127.0.0.1:1: connect: connection refused", true},
		"hosts":    {"postgres://u:hunter2@127.0.0.1:1,127.0.0.2:1/d", "dial tcp 127.0.0.1:1: connect: connection refused", true},
		"socket":   {"postgres://u:hunter2@/d?host=/nowhere", "dial unix /nowhere/.s.PGSQL.5432: connect: no such file or directory", true},
		"name":     {"postgres://u:hunter2@nowhere.invalid/d", "nowhere.invalid", true}, // how names are looked up differs between machines
	}
	for name, tt := range tests {
		commands := [][]string{{"migrate"}, {"migrate", "-status"}, {"verify"}}
		if !tt.mayGetBetter {
			commands = append(commands, []string{"serve"})
		}
		for _, args := range commands {
			t.Run(name+" "+strings.Join(args, " "), func(t *testing.T) {
				var out bytes.Buffer
				err := run(t.Context(), args, environment("DATABASE_URL", tt.url, "LISTEN_ADDR", "127.0.0.1:0"), &out)
				require.ErrorContains(t, err, "DATABASE_URL: failed to connect to `user=")
				assert.Contains(t, err.Error(), tt.want)
				assert.NotContains(t, err.Error(), "\n")
				assert.NotContains(t, err.Error()+out.String(), "hunter2")
			})
		}
	}
}

func TestHealthcheckFails(t *testing.T) {
	t.Parallel()
	healthcheck := func(listenAddr string) error {
		return run(t.Context(), []string{"healthcheck"}, environment("LISTEN_ADDR", listenAddr), io.Discard)
	}
	assert.ErrorContains(t, healthcheck("127.0.0.1:1"), "healthcheck: Get ")
	assert.ErrorContains(t, healthcheck("unix:/no/such.sock"), "healthcheck: Get ")
	_, usage := errors.AsType[*usageError](healthcheck("8080"))
	assert.True(t, usage)

	url := newDatabase(t)
	r := start(t, "DATABASE_URL", url)
	healthy := func() bool { return healthcheck(r.addr) == nil }
	eventually(t, "a good answer", healthy)
	unlock := holdLock(t, openTestStore(t, url), `LOCK TABLE schema_migrations`)
	assert.EqualError(t, healthcheck(r.addr), "healthcheck: 503 Service Unavailable: the database does not answer")
	unlock()
	eventually(t, "a good answer again", healthy)
}

func TestMigrateCommand(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	footfall := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), args, environment("DATABASE_URL", url), &out)
		return out.String(), err
	}
	out, err := footfall("migrate", "-status")
	require.NoError(t, err)
	assert.Regexp(t, `^0001_\w+\.sql +pending`, out)
	assert.NotContains(t, out, "applied")

	out, err = footfall("migrate")
	require.NoError(t, err)
	assert.Regexp(t, `^time=\S+ level=INFO msg=migrated file=0001_\w+\.sql ms=\d+\n(?s:.*)the database is up to date\n$`, out)
	out, err = footfall("migrate")
	require.NoError(t, err)
	assert.Equal(t, "the database is up to date\n", out)

	out, err = footfall("migrate", "--status")
	require.NoError(t, err)
	assert.Regexp(t, `^0001_\w+\.sql +applied 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ`, out)
	assert.NotContains(t, out, "pending")

	db := openTestStore(t, url).reads
	execute(t, db, `INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, '9999_future.sql', '')`, len(ourMigrations())+1)
	out, err = footfall("migrate", "-status")
	require.NoError(t, err)
	assert.Regexp(t, `9999_future\.sql +applied \S+ +unknown to this program`, out)
	execute(t, db, `UPDATE schema_migrations SET checksum = 'another' WHERE version = 1`)
	_, err = footfall("migrate", "-status")
	assert.ErrorContains(t, err, "was changed after it was applied on ")
}

func TestVerifyCommand(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	r := start(t, "DATABASE_URL", url)
	r.get(t, "/")
	verify := func() (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), []string{"verify"}, environment("DATABASE_URL", url), &out)
		return out.String(), err
	}
	out, err := verify()
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^all visits = sum over visitors \+ forgotten +1 +1 +ok$`, out)
	execute(t, openTestStore(t, url).reads, `UPDATE totals SET visits = 7`)
	out, err = verify()
	assert.ErrorContains(t, err, "2 of 8 comparisons differ: restore from a backup, or look for what wrote to the tables beside footfall")
	assert.Regexp(t, `(?m)^all visits = sum over visitors \+ forgotten +7 +1 +DIFFERENT$`, out)
}

// What verify -record leaves is on the page and in the JSON of a running service.
func TestVerifyRecord(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := newTestServer(t, url)
	s.ask("GET", "/")
	verify := func(args ...string) error {
		return run(t.Context(), append([]string{"verify"}, args...), environment("DATABASE_URL", url), io.Discard)
	}
	stats := func() string { return s.ask("GET", "/api/stats").Body.String() }
	shown := func() string { return pageText(s.ask("GET", "/", "User-Agent", "Googlebot/2.1").Body.String()) }
	require.NoError(t, verify())
	assert.NotContains(t, stats(), "recount", "only told to is it recorded")
	assert.NotContains(t, shown(), "recounted")

	today := time.Now().UTC().Format("2 January 2006")
	require.NoError(t, verify("-record"))
	require.NoError(t, verify("--record"), "again")
	assert.Contains(t, stats(), `"agreed": true`)
	assert.Contains(t, stats(), `"says": "The numbers were last recounted on `+today+` and agreed."`)
	assert.Contains(t, shown(), "The numbers were last recounted on "+today+" and agreed.")
	s.store.past = past{} // a counted visitor sees it after pastAge
	assert.Contains(t, pageText(s.ask("GET", "/").Body.String()), "The numbers were last recounted on "+today+" and agreed.")

	execute(t, s.store.reads, `UPDATE totals SET visits = 9`)
	require.ErrorContains(t, verify("-record"), "2 of 8 comparisons differ")
	assert.Contains(t, stats(), `"agreed": false`)
	assert.Contains(t, shown(), "The numbers were last recounted on "+today+" and did not agree.")
	require.NoError(t, s.store.recorded(t.Context(), "restore", true))
	assert.Contains(t, stats(), `"says": "A backup was last restored on `+today+` and agreed."`)
	assert.Error(t, s.store.recorded(t.Context(), "guess", true))
}

// The number of an earlier counter, on a running service: shown, never added
// twice, and a recount comes out.
func TestCarryOver(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := newTestServer(t, url)
	s.ask("GET", "/")
	carryOver := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"carry-over"}, args...), environment("DATABASE_URL", url), &out)
		return out.String(), err
	}
	text := func(headers ...string) string { return pageText(s.ask("GET", "/", headers...).Body.String()) }
	assert.NotContains(t, text("User-Agent", "Googlebot/2.1"), "carried over")
	assert.NotContains(t, s.ask("GET", "/api/stats").Body.String(), "carried_over")
	for _, tt := range []struct {
		args             []string
		visits, visitors int64 // in all afterwards
		says             string
	}{
		{[]string{"123456", "7890"}, 123457, 7891, "123,456 visits and 7,890 visitors are carried over from an earlier counter."},
		{[]string{"123456", "7890"}, 123457, 7891, "123,456 visits and 7,890 visitors are carried over from an earlier counter."}, // an answer was lost
		{[]string{"1234", "1"}, 1235, 2, "1,234 visits and 1 visitor are carried over from an earlier counter."},                  // a correction
		{[]string{"1000000000000000"}, 1_000_000_000_000_001, 1, "1,000,000,000,000,000 visits and 0 visitors are carried over from an earlier counter."},
		{[]string{"1234"}, 1235, 1, "1,234 visits and 0 visitors are carried over from an earlier counter."},
		{[]string{"0"}, 1, 1, ""},
		{[]string{"100", "10"}, 101, 11, "100 visits and 10 visitors are carried over from an earlier counter."},
	} {
		out, err := carryOver(tt.args...)
		require.NoError(t, err)
		assert.Contains(t, out, fmt.Sprintf("now there are %s and %s in all", group(tt.visits), group(tt.visitors)))
		requireExactly(t, s.store, tt.visits)
		shown := text("User-Agent", "Googlebot/2.1")
		assert.Contains(t, shown, group(tt.visitors)+" "+plural(group(tt.visitors), "visitor")+" "+group(tt.visits)+" "+plural(group(tt.visits), "visit"))
		assert.Equal(t, tt.says != "", strings.Contains(shown, "carried over"))
		assert.Contains(t, shown, tt.says)
	}
	assert.Contains(t, s.ask("GET", "/api/stats").Body.String(), `"carried_over_visits": 100,`)
	assert.Contains(t, s.ask("GET", "/api/stats").Body.String(), `"carried_over_visitors": 10`)
	s.store.past = past{}
	assert.Contains(t, text(), "11 visitors 102 visits 2 visits today", "counting goes on from there")
	client, ok := visitor.Parse("192.0.2.1")
	require.True(t, ok)
	_, err := s.store.forget(t.Context(), s.counter.Load().hasher.ID(client))
	require.NoError(t, err)
	requireExactly(t, s.store, 102)

	for name, args := range map[string][]string{
		"nothing": {}, "commas": {"1,000"}, "a word": {"many"}, "negative": {"-5"}, "three": {"3", "2", "1"},
		"more visitors than visits": {"1", "2"}, "too many": {"1000000000000001"}, "beyond 64 bits": {"99999999999999999999"},
	} {
		out, err := carryOver(args...)
		_, usage := errors.AsType[*usageError](err)
		assert.True(t, usage, name)
		assert.Empty(t, out, name)
	}
	requireExactly(t, s.store, 102)
	execute(t, s.store.reads, `DELETE FROM totals`)
	_, err = carryOver("5")
	assert.ErrorIs(t, err, errNoTotals)
	err = run(t.Context(), []string{"carry-over", "5"}, environment("DATABASE_URL", newDatabase(t)), io.Discard)
	assert.ErrorContains(t, err, "run footfall migrate, or look at the database's name in DATABASE_URL")
}

// Visits that are counted while the number is carried over are not lost.
func TestCarryOverWhileCounting(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	r := newTestRecorder(t, s)
	var counting sync.WaitGroup
	counting.Go(func() {
		for range 200 {
			count(t, r, "ada")
		}
	})
	for n := range int64(50) {
		_, _, err := s.carryOver(t.Context(), 1000+n, n)
		require.NoError(t, err)
	}
	counting.Wait()
	requireExactly(t, s, 1049+200)
}

// makeBuild builds the program in the repository at dir as a release is built.
func makeBuild(t *testing.T, dir string, variables ...string) (binary string) {
	t.Helper()
	binary = filepath.Join(t.TempDir(), "footfall")
	cmd := exec.CommandContext(t.Context(), "make", append([]string{"-C", dir, "build", "BIN=" + binary}, variables...)...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	require.NoError(t, cmd.Run())
	return binary
}

// A checkout by git for Windows has the line ends of the repository: the database
// keeps the checksums of sql/, and scripts run in containers (transact-rs/sqlx#2659).
func TestLineEndsOfACheckout(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir, "-c", "core.autocrlf=true"}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	git("init", "-q")
	names := []string{".gitattributes", "sql/0001_count.sql", "delivery/need.sh", "assets/page.html", "assets/favicon.ico"}
	for _, name := range names {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o644))
	}
	git("add", "--all")
	for _, name := range names {
		require.NoError(t, os.Remove(filepath.Join(dir, name)))
	}
	git("checkout-index", "--all")
	for _, name := range names {
		want, err := os.ReadFile(name)
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.Equal(t, string(want), string(got), name)
	}
}

// TestVersionIsTheSameEverywhere compares version.txt with what the built
// program says in its four places. The fifth, the image's label, is compared
// where an image is built: in the end-to-end tests.
func TestVersionIsTheSameEverywhere(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("version.txt")
	require.NoError(t, err)
	want := strings.TrimSpace(string(text))
	const commit, built = "0123456789abcdef0123456789abcdef01234567", "2026-11-24T00:00:00Z"
	binary := makeBuild(t, ".", "COMMIT="+commit, "BUILD=42", "BUILT="+built)

	said, err := exec.CommandContext(t.Context(), binary, "version").Output()
	require.NoError(t, err)
	assert.Contains(t, string(said), "footfall "+want+" ")
	assert.Contains(t, string(said), "(build 42, commit "+commit)

	cmd := exec.CommandContext(t.Context(), binary)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+newDatabase(t), "LISTEN_ADDR=127.0.0.1:0", "LOG_FORMAT=json")
	r := startProcess(t, cmd)
	var answer map[string]string
	_, body := r.get(t, "/version")
	require.NoError(t, json.Unmarshal([]byte(body), &answer))
	assert.Equal(t, want, answer["version"])
	assert.Equal(t, "42", answer["build"])
	assert.Equal(t, commit, answer["commit"])
	assert.Equal(t, built, answer["built"])
	_, body = r.get(t, "/metrics")
	assert.Contains(t, body, `footfall_build_info{version="`+want+`"`)
	_, body = r.get(t, "/")
	assert.Regexp(t, `\bfootfall `+regexp.QuoteMeta(want)+`\b`, pageText(body))
}

// TestBuildIsReproducible builds one commit in two directories: neither the directory
// nor the time may be in the binary. make reproducible also does it with an
// empty build cache, which takes a minute.
func TestBuildIsReproducible(t *testing.T) {
	t.Parallel()
	elsewhere := filepath.Join(t.TempDir(), "another", "folder")
	require.NoError(t, os.MkdirAll(elsewhere, 0o755))
	for _, pattern := range []string{"*.go", "internal/*/*", "go.*", "version.txt", "Makefile", "sql/*", "assets/*"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.NotEmpty(t, files, pattern)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(elsewhere, file)), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(elsewhere, file), text, 0o644))
		}
	}
	commit := []string{"COMMIT=0123", "BUILD=42", "BUILT=2026-11-24T00:00:00Z"}
	var sums [2][sha256.Size]byte
	for i, dir := range []string{".", elsewhere} {
		program, err := os.ReadFile(makeBuild(t, dir, commit...))
		require.NoError(t, err)
		sums[i] = sha256.Sum256(program)
	}
	assert.Equal(t, sums[0], sums[1], "SHA-256 of the same commit, built in two folders")
}

// A forgotten visitor's last day and the day before it still add up.
func TestForgetOverDays(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	r := newTestRecorder(t, s)
	date := november(23)
	r.now = func() time.Time { return date }
	count(t, r, "ada")
	count(t, r, "bob")
	date = november(24)
	count(t, r, "ada")
	visits, err := s.forget(t.Context(), someone("ada"))
	require.NoError(t, err)
	assert.Equal(t, int64(2), visits)
	requireVerified(t, s)
}

// A forgotten visitor leaves no row and no change of the numbers, and is new
// the next time.
func TestForget(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	r := start(t, "DATABASE_URL", url)
	s := openTestStore(t, url)
	visit := func(address, sentence string) {
		t.Helper()
		_, body := r.get(t, "/", "X-Forwarded-For", address)
		assert.Contains(t, pageText(body), sentence)
	}
	forget := func(address, want string) {
		t.Helper()
		before := queryInt(t, s.reads, `SELECT count(*) FROM visitors`)
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), []string{"forget", address}, environment("DATABASE_URL", url), &out))
		assert.Equal(t, want+"\n", out.String(), "and no address")
		gone := int64(0)
		if strings.HasPrefix(want, "removed") {
			gone = 1
		}
		assert.Equal(t, before-gone, queryInt(t, s.reads, `SELECT count(*) FROM visitors`))
		requireVerified(t, s)
	}
	for _, address := range []string{"192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8:1:2::1", "2001:db8:1:2::2"} {
		visit(address, "You have visited this page ")
	}
	forget("192.0.2.9", "no such visitor is stored")
	forget("192.0.2.1", "removed one visitor with 2 visits; the totals are unchanged")
	forget("192.0.2.1", "no such visitor is stored")
	forget(" [2001:db8:1:2:ffff::]:443\n", "removed one visitor with 2 visits; the totals are unchanged")
	visit("192.0.2.2", "You have visited this page 2 times.")
	visit("192.0.2.1", "You have visited this page 1 time.")
	assert.Equal(t, int64(7), queryInt(t, s.reads, `SELECT visits FROM totals`))
	assert.Equal(t, int64(4), queryInt(t, s.reads, `SELECT visitors FROM totals`), "one came again as a new one")
	requireVerified(t, s)

	// Addresses on standard input are on no command line. Each line is done, whatever
	// the others are.
	visit("192.0.2.3", "You have visited this page 1 time.")
	cmd := command(t, []string{"forget"}, "DATABASE_URL", url)
	cmd.Stdin = strings.NewReader("::ffff:192.0.2.1\nanything\r\n\n192.0.2.9\n192.0.2.300\n192.0.2.3")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	assert.EqualError(t, cmd.Run(), "exit status 2")
	assert.Equal(t, `removed one visitor with 1 visit; the totals are unchanged
no such visitor is stored
removed one visitor with 1 visit; the totals are unchanged
`, out.String())
	assert.Equal(t, `footfall: forget: address 2 must be written as 192.0.2.7 or 2001:db8::7
footfall: forget: address 4 must be written as 192.0.2.7 or 2001:db8::7
`, errs.String())
	assert.NotContains(t, r.lines.String(), "192.0.2")
	requireVerified(t, s)
}

// At a terminal each line is answered, before the input ends.
func TestForgetAtATerminal(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	prepared(t, openTestStore(t, url))
	cmd := command(t, []string{"forget"}, "DATABASE_URL", url)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	answers := bufio.NewReader(out)
	for range 2 {
		_, err = io.WriteString(in, "192.0.2.7\n")
		require.NoError(t, err)
		line, err := answers.ReadString('\n')
		require.NoError(t, err)
		assert.Equal(t, "no such visitor is stored\n", line)
	}
	require.NoError(t, in.Close())
	require.NoError(t, cmd.Wait())
}

func TestForgetFails(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	forget := func(address string, pairs ...string) error {
		return run(t.Context(), []string{"forget", address}, environment(append(pairs, "DATABASE_URL", url)...), new(bytes.Buffer))
	}
	assert.EqualError(t, forget("198.51.100.7"), fmt.Sprintf("the schema is at version 0, this program needs %d: run footfall migrate, or look at the database's name in DATABASE_URL", len(ourMigrations())))
	prepared(t, openTestStore(t, url))
	assert.NoError(t, forget("198.51.100.7"))
	for _, none := range []string{"", " ", "198.51.100.300", "198.51.100.7 198.51.100.8", "0.0.0.0", strings.Repeat("1", 1<<16)} {
		err := forget(none)
		require.Error(t, err)
		assert.NotContains(t, err.Error(), "198")
	}
	_, usage := errors.AsType[*usageError](forget("198.51.100.300"))
	assert.True(t, usage)
	assert.ErrorContains(t, forget("198.51.100.7", "VISITOR_KEY", strings.Repeat("x", 32)), "set the earlier key again")
}

// Visitors whose visits before and after the import are known are forgotten whole.
func TestForgetImported(t *testing.T) {
	t.Parallel()
	s := openTestStore(t, newDatabase(t))
	prepared(t, s)
	r := newTestRecorder(t, s)
	both, before := someone("both"), someone("before")
	execute(t, s.reads, `INSERT INTO visitors (id, visits) VALUES ($1, 5), ($2, 7)`, both[:], before[:])
	execute(t, s.reads, `UPDATE totals SET visits = 12, visitors = 2, imported_visits = 12, imported_visitors = 2`)
	_, err := r.record(both)
	require.NoError(t, err)
	requireVerified(t, s)
	for id, want := range map[visitor.ID]int64{both: 6, before: 7} {
		visits, err := s.forget(t.Context(), id)
		require.NoError(t, err)
		assert.Equal(t, want, visits)
		requireVerified(t, s)
	}
}

// A connection that breaks leaves the visitor forgotten, once.
func TestForgetOverABrokenConnection(t *testing.T) {
	t.Parallel()
	c, through := newCutter(t, newDatabase(t))
	s := openTestStore(t, through)
	prepared(t, s)
	r := newTestRecorder(t, s)
	for how, want := range map[cut]int64{cutRequest: 1, cutAnswer: 0} {
		count(t, r, "ada")
		_, err := s.forget(t.Context(), someone("bob")) // the statement is prepared, so the next answer is the commit's
		require.NoError(t, err)
		c.arm(how)
		visits, err := s.forget(t.Context(), someone("ada"))
		require.NoError(t, err)
		require.True(t, c.done())
		assert.Equal(t, want, visits)
		assert.Zero(t, queryInt(t, s.reads, `SELECT count(*) FROM visitors`))
		requireVerified(t, s)
	}
}

// Two who forget at once, and visitors who keep coming, get in nobody's way.
func TestForgetWhileCounting(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := openTestStore(t, url)
	prepared(t, s)
	var counting, forgetting sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		r := newTestRecorder(t, openTestStore(t, url))
		for i := range 8 {
			counting.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
						_, err := r.record(numbered((i + n) % 5))
						assert.NoError(t, err)
					}
				}
			})
		}
	}
	for i := range 2 {
		other := openTestStore(t, url)
		forgetting.Go(func() {
			for n := range 200 {
				_, err := other.forget(t.Context(), numbered((i+n)%5))
				assert.NoError(t, err)
			}
		})
	}
	forgetting.Wait()
	close(stop)
	counting.Wait()
	assert.NotZero(t, queryInt(t, s.reads, `SELECT forgotten_visitors FROM totals`))
	requireVerified(t, s)
}

// A newer version's columns come while a program that does not know them counts.
func TestColumnsComeWhileCounting(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	r := newTestRecorder(t, s)
	for range 10 { // its statements are prepared
		count(t, r, "ada")
		_, _, err := s.look(t.Context(), utcDay(r.now()), nil)
		require.NoError(t, err)
	}
	for _, table := range []string{"visitors", "days", "totals", "writers"} {
		execute(t, s.reads, `ALTER TABLE `+table+` ADD COLUMN newer bigint NOT NULL DEFAULT 0`)
	}
	for range 10 {
		count(t, r, "ada")
		_, _, err := s.look(t.Context(), utcDay(r.now()), nil)
		require.NoError(t, err)
	}
	r.metrics.mu.Lock()
	assert.Zero(t, r.metrics.batches["retried"])
	r.metrics.mu.Unlock()
	requireExactly(t, s, 20)
	requireVerified(t, s)
}

// It works for the account that runs the tests, root or not.
func TestDev(t *testing.T) {
	t.Parallel()
	dir := devFolder(t)
	r := startDev(t, dir)
	_, body := r.get(t, "/")
	assert.Contains(t, pageText(body), "You have visited this page 1 time.")
	assert.Contains(t, r.lines.String(), "footfall is at http://127.0.0.1:0 (Ctrl-C stops it)\ndata: "+dir+"\nshell: psql 'postgres://")

	// Two cannot share a cluster, and the first is not hurt.
	err := dev(t.Context(), dir, environment("LISTEN_ADDR", "127.0.0.1:0"), io.Discard)
	assert.EqualError(t, err, "another footfall dev is using "+dir+"; stop it first")
	_, body = r.get(t, "/")
	assert.Contains(t, pageText(body), "You have visited this page 2 times.")
	r.stop()
	require.NoError(t, <-r.ended)
	assert.NoFileExists(t, filepath.Join(dir, "data", "postmaster.pid"), "the server has stopped as well")

	// The second run shows the first one's count, here on a unix socket.
	socket := filepath.Join(t.TempDir(), "web.sock")
	r = startDev(t, dir, "LISTEN_ADDR", "unix:"+socket, "TRUSTED_PROXIES", "192.0.2.0/24")
	assert.Contains(t, r.lines.String(), "footfall is at unix:"+socket+" (Ctrl-C stops it)\n")
	_, body = r.get(t, "/", "X-Forwarded-For", "127.0.0.1")
	assert.Contains(t, pageText(body), "You have visited this page 3 times.")
	r.stop()
	require.NoError(t, <-r.ended)

	// Data of another major version are neither used nor removed.
	version := filepath.Join(dir, "data", "PG_VERSION")
	made, err := os.ReadFile(version)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(version, []byte("9.6\n"), 0o600))
	err = dev(t.Context(), dir, environment("LISTEN_ADDR", "127.0.0.1:0"), io.Discard)
	assert.ErrorContains(t, err, "initialized by PostgreSQL version 9.6, which is not compatible with this version "+strings.TrimSpace(string(made)))
	assert.DirExists(t, filepath.Join(dir, "data", "base"))
}

// What is wrong is told before a cluster is made.
func TestDevRefuses(t *testing.T) {
	t.Parallel()
	dir := devFolder(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	err = dev(t.Context(), dir, environment("LISTEN_ADDR", taken.Addr().String()), io.Discard)
	assert.EqualError(t, err, `listen on "`+taken.Addr().String()+`": another program listens there; stop it or set LISTEN_ADDR`)
	err = dev(t.Context(), dir, environment("LOG_LEVEL", "loud", "DATABASE_URL_FILE", "/no/such/file"), io.Discard)
	assert.EqualError(t, err, `LOG_LEVEL is "loud"; it must be one of: info, debug, warn, error`)
	assert.NoDirExists(t, dir)
}

// After a kill -9 the server is still there; the next run takes its cluster
// over and counts on.
func TestDevAfterKill(t *testing.T) {
	t.Parallel()
	home, err := clusterDir()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(home)) })
	cmd := developer(t, home)
	r := startProcess(t, cmd)
	answer, _ := r.get(t, "/")
	require.Equal(t, http.StatusOK, answer.StatusCode)
	dir := filepath.Join(home, "cache", "footfall")
	sockets := regexp.MustCompile(`\?host=([^']+)'`).FindStringSubmatch(r.lines.String())
	require.NotNil(t, sockets)
	left, err := url.QueryUnescape(sockets[1])
	require.NoError(t, err)
	orphan := serverPID(t, dir)
	group, err := syscall.Getpgid(orphan)
	require.NoError(t, err)
	assert.NotEqual(t, cmd.Process.Pid, group, "a terminal's ^C would reach the server")
	require.NoError(t, cmd.Process.Kill())
	require.ErrorContains(t, <-r.ended, "signal: killed")
	require.NoError(t, syscall.Kill(orphan, 0), "the server is still there")
	assert.DirExists(t, left)

	cmd = developer(t, home)
	r = startProcess(t, cmd)
	assert.NotEqual(t, orphan, serverPID(t, dir))
	assert.NoDirExists(t, left)
	_, body := r.get(t, "/")
	assert.Contains(t, pageText(body), "You have visited this page 2 times.")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, <-r.ended)
	assert.NoFileExists(t, filepath.Join(dir, "data", "postmaster.pid"))
}

func TestDialAddr(t *testing.T) {
	t.Parallel()
	for listenAddr, want := range map[string]string{
		":8080":             "tcp localhost:8080",
		"0.0.0.0:80":        "tcp localhost:80",
		"[::]:80":           "tcp localhost:80",
		"127.0.0.1:8080":    "tcp 127.0.0.1:8080",
		"[::1]:8080":        "tcp [::1]:8080",
		"unix:/run/ff.sock": "unix /run/ff.sock",
	} {
		network, addr := dialAddr(listenAddr)
		assert.Equal(t, want, network+" "+addr)
	}
}

func TestVerifyFindsTampering(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		tamper string
		want   []string // what differs
	}{
		"a visit too many in the totals":   {`UPDATE totals SET visits = visits + 1`, []string{"all visits = sum over visitors + forgotten", "all visits = sum over days + imported"}},
		"a visitor too many in the totals": {`UPDATE totals SET visitors = visitors + 1`, []string{"all visitors = rows of visitors + forgotten", "all visitors = new ones over days + imported"}},
		"a visitor's visits":               {`UPDATE visitors SET visits = visits + 1 WHERE visits = 1`, []string{"all visits = sum over visitors + forgotten"}},
		"a visitor removed":                {`DELETE FROM visitors WHERE visits = 1`, []string{"all visits = sum over visitors + forgotten", "all visitors = rows of visitors + forgotten", "days whose new visitors differ from rows + forgotten", "visitors of the latest day = rows + forgotten"}},
		"a day's visits":                   {`UPDATE days SET visits = visits + 1 WHERE day = '2026-11-23'`, []string{"all visits = sum over days + imported"}},
		"a day's new visitors":             {`UPDATE days SET new_visitors = new_visitors + 1 WHERE day = '2026-11-23'`, []string{"all visitors = new ones over days + imported", "days whose new visitors differ from rows + forgotten"}},
		"new visitors on another day":      {`UPDATE days SET new_visitors = new_visitors + CASE day WHEN '2026-11-23' THEN 1 ELSE -1 END`, []string{"days whose new visitors differ from rows + forgotten"}},
		"the latest day's visitors":        {`UPDATE days SET visitors = 9 WHERE day = '2026-11-24'`, []string{"visitors of the latest day = rows + forgotten"}},
		"the visitors of the day before":   {`UPDATE days SET visitors = 9 WHERE day = '2026-11-23'`, []string{"visitors of the day before it = rows + forgotten"}},
		"imported visits":                  {`UPDATE totals SET imported_visits = 1`, []string{"all visits = sum over days + imported"}},
		"imported visitors":                {`UPDATE totals SET imported_visitors = 1`, []string{"all visitors = new ones over days + imported"}},
		"the totals removed":               {`DELETE FROM totals`, []string{"rows of totals = 1"}},
		"everything removed":               {`TRUNCATE totals, visitors, days`, []string{"rows of totals = 1"}},
		"the days removed":                 {`TRUNCATE days`, []string{"all visits = sum over days + imported", "all visitors = new ones over days + imported", "days whose new visitors differ from rows + forgotten"}},
		"nothing":                          {`SELECT`, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			date := november(23)
			r := newTestRecorder(t, s)
			r.now = func() time.Time { return date }
			count(t, r, "ada")
			count(t, r, "ada")
			date = november(24)
			count(t, r, "ada")
			count(t, r, "bob")
			requireVerified(t, s)
			execute(t, s.reads, tt.tamper)
			checks, err := s.verify(t.Context())
			require.NoError(t, err)
			var different []string
			for _, c := range checks {
				if c.kept != c.sum {
					different = append(different, c.what)
				}
			}
			assert.Equal(t, tt.want, different)
		})
	}
}

func TestVerifyEmptyDatabases(t *testing.T) {
	t.Parallel()
	requireVerified(t, newStore(t))
	_, err := openTestStore(t, newDatabase(t)).verify(t.Context())
	assert.ErrorContains(t, err, "run footfall migrate")
}
