package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	runnable = regexp.MustCompile("(?s)```sh runnable\n(.*?)```")
	// A relative link or a picture's source: what it names must be there.
	relativeLink = regexp.MustCompile(`(?:\]\(|src="|srcset=")([^)":#]+)`)
)

// TestReadme runs the README's blocks that are marked as runnable, line by
// line, against a service that no other test uses. The comments under a command are what it
// prints; "…" matches anything.
func TestReadme(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	blocks := runnable.FindAllStringSubmatch(string(text), -1)
	require.NotEmpty(t, blocks)

	databaseURL := newDatabase(t)
	s := start(t, "DATABASE_URL", databaseURL, "TRUSTED_PROXIES", "127.0.0.0/8")
	_, port, err := net.SplitHostPort(s.addr)
	require.NoError(t, err)
	dir := t.TempDir()
	self, err := filepath.Abs(os.Args[0])
	require.NoError(t, err)
	require.NoError(t, os.Symlink(self, filepath.Join(dir, "footfall"))) // TestMain: this binary is footfall as well

	for _, block := range blocks {
		var command string
		var want []string
		check := func() {
			if command == "" {
				return
			}
			cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", strings.ReplaceAll(command, "localhost:8080", "127.0.0.1:"+port))
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), beFootfall+"=yes", "GOCOVERDIR="+t.TempDir(), "DATABASE_URL="+databaseURL, "LISTEN_ADDR=127.0.0.1:"+port)
			output, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s\n%s", command, output)
			assert.Regexp(t, printed(want), strings.TrimSpace(string(output)), command)
			command, want = "", nil
		}
		for line := range strings.Lines(block[1]) {
			line = strings.TrimRight(line, "\n")
			if comment, ok := strings.CutPrefix(line, "# "); ok {
				want = append(want, comment)
				continue
			}
			check()
			command = line
		}
		check()
	}
}

// printed turns the comments under a command into what its output must match.
func printed(lines []string) string {
	pattern := regexp.QuoteMeta(strings.TrimSpace(strings.Join(lines, "\n")))
	return "(?s)^" + strings.ReplaceAll(pattern, "…", ".*") + "$"
}

// Every setting and every subcommand is in the README, in the help text
// and in the program.
func TestReadmeNamesEverything(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	asked := map[string]bool{}
	loadConfig(func(key string) string { asked[key] = true; return "" })
	for key := range asked {
		assert.Contains(t, string(text), "`"+key+"`", "README.md")
		assert.Contains(t, helpText, key, "footfall help")
	}
	for _, command := range []string{"serve", "migrate", "verify", "forget", "healthcheck", "dev", "version", "help"} {
		assert.Contains(t, string(text), "footfall "+command, "README.md")
		assert.Contains(t, helpText, command, "footfall help")
	}
}

func TestReadmeLinks(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	for _, link := range relativeLink.FindAllStringSubmatch(string(text), -1) {
		_, err := os.Stat(link[1])
		assert.NoError(t, err)
	}
}
