//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// release builds (once) the repository's Dockerfile, unmodified, with its own version, and returns the image's
// name, which ends in :VERSION.
func release(t *testing.T) string {
	t.Helper()
	setUp(t)
	version := repoVersion(t)
	name := appImage() + ":" + version
	if _, err := docker("image", "inspect", name); err == nil {
		return name
	}
	buildRelease(t, version, copyRepo(t))
	return name
}

// buildRelease makes the image of a version from the Dockerfile in dir.
func buildRelease(t *testing.T, version, dir string) {
	t.Helper()
	name := appImage() + ":" + version
	require.NoError(t, step("build "+name, func() error {
		_, err := sh("env", "DOCKER_BUILDKIT=0", "docker", "build", "-q", "--build-arg", "VERSION="+version, "-t", name, dir)
		return err
	}))
	atEnd(func() { docker("rmi", "-f", name) })
}

// repoVersion is what version.txt says.
func repoVersion(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repoDir(), "version.txt"))
	require.NoError(t, err)
	return strings.TrimSpace(string(text))
}

// appImage is the name of this run's releases, without a tag: app_image.
func appImage() string { return "footfall-e2e-" + pid }

// copyRepo copies what the Dockerfile needs into a directory where a test may change it: another
// migration, a release that never gets ready.
func copyRepo(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	files, err := sh("git", "-C", repoDir(), "ls-files", "--cached", "--others", "--exclude-standard")
	require.NoError(t, err)
	for name := range strings.Lines(files) {
		name = strings.TrimSpace(name)
		if strings.HasPrefix(name, "e2e/") || strings.HasPrefix(name, "ansible/") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(repoDir(), name))
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o644))
	}
	return dir
}

// archive saves an image (once) where the controller sees it, and returns the path.
func archive(t *testing.T, image string) string {
	t.Helper()
	setUp(t)
	path := filepath.Join(shared(), strings.NewReplacer(":", "-", "/", "-").Replace(image)+".tar")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	require.NoError(t, step("save "+image, func() error {
		_, err := docker("save", "--output", path, image)
		return err
	}))
	return path
}
