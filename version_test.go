package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// makeBuild builds the program in the repository at dir as a release is built.
func makeBuild(t *testing.T, dir string, variables ...string) (binary string) {
	t.Helper()
	binary = filepath.Join(t.TempDir(), "footfall")
	cmd := exec.CommandContext(t.Context(), "make", append([]string{"-C", dir, "build", "BIN=" + binary}, variables...)...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	require.NoError(t, cmd.Run())
	return binary
}

// TestVersionIsTheSameEverywhere compares version.txt with what the built
// program says in its four places. The fifth, the image's label, is compared
// where an image is built: in the end-to-end tests.
func TestVersionIsTheSameEverywhere(t *testing.T) {
	text, err := os.ReadFile("version.txt")
	require.NoError(t, err)
	want := strings.TrimSpace(string(text))
	const commit, built = "0123456789abcdef0123456789abcdef01234567", "2026-11-24T00:00:00Z"
	binary := makeBuild(t, ".", "COMMIT="+commit, "BUILD=42", "BUILT="+built)

	said, err := exec.CommandContext(t.Context(), binary, "version").Output()
	require.NoError(t, err)
	assert.Contains(t, string(said), "footfall "+want+" ")
	assert.Contains(t, string(said), "(build 42, commit "+commit)

	served := exec.CommandContext(t.Context(), binary)
	served.Env = append(os.Environ(), "DATABASE_URL="+newDatabase(t), "LISTEN_ADDR=127.0.0.1:0", "LOG_FORMAT=json")
	out, err := served.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, served.Start())
	defer func() {
		assert.NoError(t, served.Process.Signal(syscall.SIGTERM))
		assert.NoError(t, served.Wait())
	}()
	address := listeningAddress(t, out)

	var answer map[string]string
	require.NoError(t, json.Unmarshal([]byte(get(t, address+"/version")), &answer))
	assert.Equal(t, want, answer["version"])
	assert.Equal(t, "42", answer["build"])
	assert.Equal(t, commit, answer["commit"])
	assert.Equal(t, built, answer["built"])
	assert.Contains(t, get(t, address+"/metrics"), `footfall_build_info{version="`+want+`"`)
	page := regexp.MustCompile(`<[^>]*>`).ReplaceAllString(get(t, address+"/"), "")
	assert.Regexp(t, `\bfootfall `+regexp.QuoteMeta(want)+`\b`, page)
}

// listeningAddress reads the program's log up to the line that says where it
// listens, and lets the rest pass.
func listeningAddress(t *testing.T, log io.Reader) string {
	t.Helper()
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		var line struct{ Msg, Addr string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "listening" {
			go io.Copy(io.Discard, log)
			return "http://" + line.Addr
		}
	}
	require.Fail(t, "the program ended before it listened")
	return ""
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, string(body))
	return string(body)
}

// TestBuildIsReproducible builds one commit in two folders: neither the folder
// nor the time may be in the binary. make reproducible also does it with an
// empty build cache, which takes a minute.
func TestBuildIsReproducible(t *testing.T) {
	elsewhere := filepath.Join(t.TempDir(), "another", "folder")
	require.NoError(t, os.MkdirAll(elsewhere, 0o755))
	for _, pattern := range []string{"*.go", "go.*", "version.txt", "Makefile", "sql/*", "assets/*"} {
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
