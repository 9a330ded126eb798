package devdb

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A half-made cluster is made again, and the error of a server that does not
// start holds its log. The directory's name is longer than a socket's path may be
// and holds what a shell would change.
func TestDevHalfMade(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(enterable(t), "it's $HOME "+strings.Repeat("long", 30))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "data.new", "base"), 0o755))
	_, err := Start(t.Context(), dir, "no_such_setting=1")
	require.ErrorContains(t, err, "start PostgreSQL: exit status 1\n")
	assert.ErrorContains(t, err, `unrecognized configuration parameter "no_such_setting"`)
	c, err := Start(t.Context(), dir, "fsync=off")
	require.NoError(t, err, "the first try has given everything back")
	assert.NoError(t, c.Stop())
	assert.NoDirExists(t, c.Sockets)
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

// enterable makes a directory that another account can enter, as the server's must
// where the tests run as root.
func enterable(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "footfall-test")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}
