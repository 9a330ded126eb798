package main

import (
	"crypto/sha256"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
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
