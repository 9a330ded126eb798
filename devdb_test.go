package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// devFolder is a cluster's folder that does not exist yet, in one that the
// server's account can enter.
func devFolder(t testing.TB) string {
	t.Helper()
	dir, err := clusterDir()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	return filepath.Join(dir, "footfall")
}

// startDev runs footfall dev in this process.
func startDev(t testing.TB, dir string, pairs ...string) *running {
	t.Helper()
	r := startFunc(t, func(ctx context.Context, out io.Writer) error {
		return dev(ctx, dir, environment(append(pairs, "LISTEN_ADDR", "127.0.0.1:0")...), out)
	})
	r.awaitReady(t)
	return r
}

// It works for the account that runs the tests, root or not.
func TestDev(t *testing.T) {
	t.Parallel()
	dir := devFolder(t)
	r := startDev(t, dir)
	_, body := r.get(t, "/")
	assert.Contains(t, pageText(body), "You have visited this page 1 time.")
	assert.Contains(t, r.lines.String(), "data in "+dir+"\npsql 'postgres://")
	assert.Contains(t, r.lines.String(), "\nopen http://127.0.0.1:0\n")

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
	assert.Contains(t, r.lines.String(), "\ncurl --unix-socket "+socket+" http://footfall/\n")
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
	assert.ErrorContains(t, err, dir+" was made by PostgreSQL 9.6, but postgres (PostgreSQL) "+strings.TrimSpace(string(made)))
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
	assert.EqualError(t, err, `LOG_LEVEL is "loud", want one of: info, debug, warn, error`)
	assert.NoDirExists(t, dir)
}

// A half-made cluster is made again, and the error of a server that does not
// start holds its log. The folder's name is longer than a socket's path may be
// and holds what a shell would change.
func TestDevHalfMade(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(devFolder(t), "it's $HOME "+strings.Repeat("long", 30))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "data.new", "base"), 0o755))
	_, err := startCluster(t.Context(), dir, "no_such_setting=1")
	require.ErrorContains(t, err, "start PostgreSQL: exit status 1\n")
	assert.ErrorContains(t, err, `unrecognized configuration parameter "no_such_setting"`)
	c, err := startCluster(t.Context(), dir, fastOptions...)
	require.NoError(t, err, "the first try has given everything back")
	assert.NoError(t, c.createDatabase(t.Context(), "footfall"))
	assert.NoError(t, c.stop())
	assert.NoDirExists(t, c.sockets)
}

// developer prepares footfall dev as an ordinary user: the account nobody where
// the tests run as root, else the one that runs them.
func developer(t testing.TB, home string) *exec.Cmd {
	t.Helper()
	cmd := command(t, []string{"dev"}, "HOME", home, "XDG_CACHE_HOME", filepath.Join(home, "cache"), "LISTEN_ADDR", "127.0.0.1:0", "GOCOVERDIR", home)
	// A process group, so that a kill hits nothing else.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Dir = home
	if os.Getuid() != 0 {
		return cmd
	}
	nobody, err := user.Lookup("nobody")
	require.NoError(t, err)
	uid, err := strconv.Atoi(nobody.Uid)
	require.NoError(t, err)
	gid, err := strconv.Atoi(nobody.Gid)
	require.NoError(t, err)
	require.NoError(t, os.Chown(home, uid, gid))
	// This account cannot enter the folder of the test binary.
	binary, err := os.ReadFile(cmd.Path)
	require.NoError(t, err)
	cmd.Path = filepath.Join(home, "program")
	require.NoError(t, os.WriteFile(cmd.Path, binary, 0o755))
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return cmd
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

// serverPID reads the first line of postmaster.pid.
func serverPID(t testing.TB, dir string) int {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	require.NoError(t, err)
	line, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(line)
	require.NoError(t, err)
	return pid
}

func TestHowToOpen(t *testing.T) {
	t.Parallel()
	for listenAddr, want := range map[string]string{
		":8080":             "open http://localhost:8080",
		"0.0.0.0:80":        "open http://localhost:80",
		"[::]:80":           "open http://localhost:80",
		"127.0.0.1:8080":    "open http://127.0.0.1:8080",
		"[::1]:8080":        "open http://[::1]:8080",
		"unix:/run/ff.sock": "curl --unix-socket /run/ff.sock http://footfall/",
	} {
		assert.Equal(t, want, howToOpen(listenAddr))
	}
}

func TestFindPostgres(t *testing.T) {
	t.Parallel()
	bin, err := findPostgres()
	require.NoError(t, err)
	for _, program := range []string{"initdb", "pg_ctl", "postgres"} {
		assert.FileExists(t, filepath.Join(bin, program))
	}
	for text, want := range map[string]int{
		"/usr/lib/postgresql/17/bin/initdb":   17,
		"/usr/lib/postgresql/9.6/bin/initdb":  9,
		"/opt/homebrew/opt/postgresql/bin":    0,
		"postgres (PostgreSQL) 16beta1":       16,
		"postgres (PostgreSQL) 15.18 (Debian": 15,
	} {
		assert.Equal(t, want, majorIn(text), text)
	}
}

// Where nothing is installed, that is said, and what to do.
func TestFindPostgresNowhere(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	dirs := postgresDirs
	defer func() { postgresDirs = dirs }()
	postgresDirs = nil
	_, err := findPostgres()
	assert.EqualError(t, err, "PostgreSQL's server programs are not installed: run make run, which installs them, or install the package postgresql")
}
