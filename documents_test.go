package main

import (
	"html"
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

// documents returns the texts for readers by their file names.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", ".github/*.md", "ansible/*.md"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			texts[file] = string(text)
		}
	}
	return texts
}

// A block of commands says how it was run.
var commandBlock = regexp.MustCompile("(?ms)^```sh *([^\n]*)\n(.*?)^```$")

// TestDocumentsCommands runs the blocks that are marked as runnable, line by
// line, a document at a time against a service that no other test uses. The
// comments under a command are what it prints; "…" matches anything. All other
// blocks say where they are run: by hand, or on a host by an end-to-end test.
func TestDocumentsCommands(t *testing.T) {
	t.Parallel()
	self, err := filepath.Abs(os.Args[0])
	require.NoError(t, err)
	for file, text := range documents(t) {
		var lines []string
		for _, block := range commandBlock.FindAllStringSubmatch(text, -1) {
			if block[1] == "runnable" {
				lines = append(lines, strings.Split(strings.TrimSuffix(block[2], "\n"), "\n")...)
			} else {
				assert.Regexp(t, `^(by hand on \S|on a host of make e2e$|as in Test)`, block[1], "%s: how was this run? %s", file, block[2])
			}
		}
		assert.NotContains(t, text, "\n```bash", file)
		if len(lines) == 0 {
			continue
		}
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			databaseURL := newDatabase(t)
			s := start(t, "DATABASE_URL", databaseURL, "TRUSTED_PROXIES", "127.0.0.0/8")
			_, port, err := net.SplitHostPort(s.addr)
			require.NoError(t, err)
			dir := t.TempDir()
			require.NoError(t, os.Symlink(self, filepath.Join(dir, "footfall"))) // TestMain: this binary is footfall as well
			for len(lines) > 0 {
				command := strings.ReplaceAll(lines[0], "localhost:8080", "127.0.0.1:"+port)
				var want []string
				for lines = lines[1:]; len(lines) > 0 && strings.HasPrefix(lines[0], "# "); lines = lines[1:] {
					want = append(want, lines[0][2:])
				}
				cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", command)
				cmd.Dir = dir
				cmd.Env = append(os.Environ(), beFootfall+"=yes", "GOCOVERDIR="+t.TempDir(), "DATABASE_URL="+databaseURL, "LISTEN_ADDR=127.0.0.1:"+port)
				output, err := cmd.CombinedOutput()
				require.NoError(t, err, "%s\n%s", command, output)
				assert.Regexp(t, printed(want), strings.TrimSpace(string(output)), command)
			}
		})
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
	text := documents(t)["README.md"]
	asked := map[string]bool{}
	loadConfig(func(key string) string { asked[key] = true; return "" })
	for key := range asked {
		assert.Contains(t, text, "`"+key+"`", "README.md")
		assert.Contains(t, helpText, key, "footfall help")
	}
	for _, command := range []string{"serve", "migrate", "verify", "forget", "carry-over", "healthcheck", "dev", "version", "help"} {
		assert.Contains(t, text, "footfall "+command, "README.md")
		assert.Contains(t, helpText, command, "footfall help")
	}
	for _, res := range (&server{}).resources() {
		assert.Contains(t, text, res.path, "README.md")
	}
}

var (
	relativeLink = regexp.MustCompile(`(?:\]\(|src="|srcset=")([^)":]+)[)"]`)
	heading      = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notInAnchor  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// A relative link leads to a file, and to a heading in it.
func TestDocumentsLinks(t *testing.T) {
	t.Parallel()
	texts := documents(t)
	for file, text := range texts {
		for _, link := range relativeLink.FindAllStringSubmatch(text, -1) {
			if strings.HasPrefix(link[1], "../../") {
				continue // GitHub's own pages beside the repository's files
			}
			path, anchor, _ := strings.Cut(link[1], "#")
			target := filepath.Join(filepath.Dir(file), path)
			if path == "" {
				target = file
			}
			content, err := os.ReadFile(target)
			if err != nil {
				_, err = os.Stat(target) // a directory
			}
			require.NoError(t, err, "%s links to %s", file, link[1])
			if anchor == "" {
				continue
			}
			var anchors []string
			for _, h := range heading.FindAllStringSubmatch(string(content), -1) {
				anchors = append(anchors, strings.ReplaceAll(notInAnchor.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
			}
			assert.Contains(t, anchors, anchor, "%s links to %s", file, link[1])
		}
	}
	// The pages of docs/ are reached from the README and lead back to it.
	for file, text := range texts {
		if strings.HasPrefix(file, "docs/") {
			assert.Contains(t, texts["README.md"], "("+file, "README.md links to it")
			assert.Contains(t, text, "(../README.md)", file)
		}
	}
}

// A test that a document names is there.
func TestDocumentsTests(t *testing.T) {
	t.Parallel()
	var code strings.Builder
	for _, pattern := range []string{"*_test.go", "internal/*/*_test.go", "e2e/*_test.go", "delivery/*_test.go"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			code.Write(text)
		}
	}
	named := 0
	for file, text := range documents(t) {
		for _, test := range regexp.MustCompile("`(Test[A-Z][A-Za-z0-9]*)(?:/([A-Za-z]+))?`").FindAllStringSubmatch(text, -1) {
			assert.True(t, strings.Contains(code.String(), "\nfunc "+test[1]+"("), "%s: there is no %s", file, test[1])
			assert.True(t, test[2] == "" || strings.Contains(code.String(), `"`+test[2]+`"`), "%s: there is no %s", file, test[0])
			named++
		}
	}
	assert.NotZero(t, named)
}

// What the help with troubles quotes is what the program says.
func TestTroublesAreQuoted(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	var said strings.Builder
	for _, file := range append(files, "internal/visitor/visitor.go") {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		if !strings.HasSuffix(file, "_test.go") {
			said.Write(text)
		}
	}
	spoken := regexp.MustCompile(`%[sdqw]|\d+m\d+s`).ReplaceAllString(said.String(), "…")
	quoted := 0
	for _, line := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(documents(t)["docs/troubleshooting.md"], -1) {
		for part := range strings.SplitSeq(regexp.MustCompile(`\d+m\d+s|version \d|needs \d`).ReplaceAllStringFunc(line[1], func(s string) string {
			return strings.TrimRight(s, "0123456789ms") + "…"
		}), "…") {
			if part = strings.Trim(part, " ,:"); part != "" && part != "/readyz" {
				assert.Contains(t, spoken, part)
				quoted++
			}
		}
	}
	assert.NotZero(t, quoted)
}

// The pictures of a diagram are made of its source: every text of one is in the other.
func TestDiagramIsOfItsSource(t *testing.T) {
	t.Parallel()
	for _, picture := range []string{"design", "design-dark", "deployment", "deployment-dark"} {
		source, err := os.ReadFile("docs/" + strings.TrimSuffix(picture, "-dark") + ".dot")
		require.NoError(t, err)
		drawn, err := os.ReadFile("docs/" + picture + ".svg")
		require.NoError(t, err)
		var labels, texts []string
		for _, label := range regexp.MustCompile(`label="([^"]*)"`).FindAllStringSubmatch(string(source), -1) {
			labels = append(labels, strings.Split(label[1], `\n`)...)
		}
		for _, text := range regexp.MustCompile(`<text [^>]*>([^<]*)</text>`).FindAllStringSubmatch(string(drawn), -1) {
			texts = append(texts, html.UnescapeString(text[1]))
		}
		assert.ElementsMatch(t, labels, texts, "%s: run make picture", picture)
	}
}
