//go:build e2e

package e2e

import (
	"slices"
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

	config, err := docker("image", "inspect", "--format", `{{index .Config.Labels "org.opencontainers.image.version"}} {{.Config.User}} {{.Config.Entrypoint}} {{.Config.Env}} {{.Config.Healthcheck.Test}}`, image+":"+version)
	require.NoError(t, err)
	assert.Regexp(t, `^`+version+` 65532:65532 \[/footfall\] \[PATH=\S+\] \[CMD /footfall healthcheck\]$`, config, "no root, no shell, no secret in the environment")
	files, err := sh("sh", "-c", "id=$(docker create "+image+":"+version+"); docker export $id | tar t | grep -v /$; docker rm $id >/dev/null")
	require.NoError(t, err)
	assert.Equal(t, "etc/ssl/certs/ca-certificates.crt\nfootfall", strings.Join(slices.DeleteFunc(strings.Fields(files), func(file string) bool {
		return slices.Contains([]string{".dockerenv", "dev/console", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"}, file) // the engine's
	}), "\n"))
	said, err := docker("run", "--rm", "--network", "none", image+":"+version, "version")
	require.NoError(t, err)
	assert.Contains(t, said, "footfall "+version+" ")
}
