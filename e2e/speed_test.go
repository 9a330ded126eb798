//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// speedRuns is how many times each run is timed.
const speedRuns = 10

// floor does by hand, on a host, what a deployment has to do there: load the image, start it, wait until it is ready,
// and stop a release that drains.
const floor = `source <(sed '/^case/,$d' /usr/local/sbin/footfall-release)
docker load --quiet --input /run/e2e-image.tar
install --directory --owner=65532 --group=www-data --mode=0750 $state/floor
cp -a /etc/footfall/app /etc/footfall/app-floor
run_arguments floor
docker run --detach --name footfall-floor "${arguments[@]}" IMAGE
until ready floor; do sleep 0.1; done
docker stop footfall-floor`
const endFloor = "docker rm --force footfall-floor; rm -rf /var/lib/footfall/floor /etc/footfall/app-floor /run/e2e-image.tar"

// testSpeed times deployments of a release that no host has yet, and site.yml without a change, while visitors come.
func testSpeed(t *testing.T, s *service) {
	const other = "99.5.0"
	variant(t, other, func(string) {})
	forget := func(version string) {
		for _, h := range s.hosts {
			h.must(t, "while systemctl --quiet is-active footfall-drain; do sleep 0.1; done; docker container prune --force; docker rmi --force "+appImage()+":"+version)
		}
	}
	var floors, deployments, sites []time.Duration
	l := startLoad(t, s.url("/"), 8, 20*time.Millisecond)
	for i := range speedRuns {
		to := []string{other, s.version}[i%2]
		forget(to)

		var wg sync.WaitGroup
		file := archive(t, appImage()+":"+to)
		for _, h := range s.hosts {
			_, err := sh("sh", "-c", "docker exec -i "+h.container+" sh -c 'cat > /run/e2e-image.tar' < "+file)
			require.NoError(t, err)
		}
		begin := time.Now()
		for _, h := range s.hosts {
			wg.Go(func() {
				_, err := docker("exec", h.container, "bash", "-c", strings.ReplaceAll(floor, "IMAGE", appImage()+":"+to))
				assert.NoError(t, err)
			})
		}
		wg.Wait()
		floors = append(floors, time.Since(begin))
		for _, h := range s.hosts {
			h.must(t, endFloor)
		}

		forget(to)
		p := s.deploy(t, to)
		p.require(t)
		deployments = append(deployments, p.Took)
		assert.Equal(t, []string{to, to}, s.running(t))
	}
	for range speedRuns {
		p := s.play(t, "site.yml")
		p.require(t)
		assert.Zero(t, p.Changed, "%v", p.Tasks)
		sites = append(sites, p.Took)
	}
	r := l.finish()
	record("load while it was timed", r.Requests, r.Failed, r.Took, "")
	assert.Zero(t, r.Failed, "%s", r)
	for _, timed := range []struct {
		name string
		runs []time.Duration
	}{
		{"by hand on both hosts: load the image, start it, ready, stop one that drains", floors},
		{"deploy.yml, two hosts, a release they have not", deployments},
		{"site.yml, two hosts, no change", sites},
	} {
		slices.Sort(timed.runs)
		record(timed.name, 0, 0, timed.runs[speedRuns/2], "median of %d; %.1f to %.1f", speedRuns, timed.runs[0].Seconds(), timed.runs[speedRuns-1].Seconds())
	}
}
