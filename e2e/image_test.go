//go:build e2e

package e2e

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestImageSaysItsVersion: the image that make builds carries version.txt's version in its tag, its label and its
// program. The page, /version and the metric are compared with the same file in version_test.go.
func TestImageSaysItsVersion(t *testing.T) {
	setUp(t)
	version := repoVersion(t)
	image := "footfall-e2e-" + pid + "-image"
	atEnd(func() { docker("rmi", "-f", image+":"+version) })
	require.NoError(t, step("make image", func() error {
		_, err := sh("make", "-C", repoDir(), "image", "IMAGE="+image)
		return err
	}))

	label, err := docker("image", "inspect", "--format", `{{index .Config.Labels "org.opencontainers.image.version"}}`, image+":"+version)
	require.NoError(t, err)
	assert.Equal(t, version, strings.TrimSpace(label))
	said, err := docker("run", "--rm", "--network", "none", image+":"+version, "version")
	require.NoError(t, err)
	assert.Contains(t, said, "footfall "+version+" ")
}
