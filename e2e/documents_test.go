//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestWithoutAnsible does on a bare host what docs/without-ansible.md says, block after block.
func TestWithoutAnsible(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(repoDir(), "docs/without-ansible.md"))
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?ms)^```sh on a host of make e2e\n(.*?)^```$").FindAllStringSubmatch(string(page), -1)
	require.NotEmpty(t, blocks)
	f := bootHosts(t, 1)
	defer f.remove()
	h := f.hosts[0]
	h.must(t, "apt-get -q update")

	binary := filepath.Join(t.TempDir(), "footfall-"+repoVersion(t)+"-linux-amd64")
	_, err = sh("make", "-C", repoDir(), "build", "BIN="+binary)
	require.NoError(t, err)
	_, err = docker("cp", binary, h.container+":/srv/")
	require.NoError(t, err)
	for _, block := range blocks {
		out, err := docker("exec", "--workdir=/srv", "--env=DEBIAN_FRONTEND=noninteractive", h.container, "bash", "-euo", "pipefail", "-c", block[1])
		require.NoError(t, err, block[1])
		t.Log(out)
	}
}
