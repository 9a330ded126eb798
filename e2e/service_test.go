//go:build e2e

package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestService brings up the service on two hosts, and does to it what happens to a service, one thing after the other.
func TestService(t *testing.T) {
	s := converged(t)
	defer s.remove()
	for _, part := range []struct {
		name string
		test func(*testing.T, *service)
	}{
		{"Backups", testBackups},
		{"Browser", testBrowser},
		{"Converge", testConverge},
		{"Order", testOrder},
		{"Wire", testWire},
		{"DeployFaults", testDeployFaults},
		{"ThreeHosts", testThreeHosts},
		{"DeployUnderLoad", testDeployUnderLoad},
		{"Operator", testOperator},
		{"Speed", testSpeed},
		{"Registry", testRegistry},
		{"Workflow", testWorkflow},
		{"Updates", testUpdates},
		{"Faults", testFaults},
		{"TLS", testTLS},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, s) })
	}
}

// A service is hosts on which the release in the repository runs.
type service struct {
	*fleet
	version  string
	first    play     // the site.yml that brought it up
	settings []string // arguments of every playbook
	operator *operator
	front    string // where visitors come in, if not at the edge
}

// converged is a service on two hosts that site.yml has just brought up.
func converged(t *testing.T) *service {
	t.Helper()
	setUp(t)
	s := &service{version: repoVersion(t)}
	image := release(t)
	s.fleet = bootHosts(t, 2)
	s.operator = startOperator(t, s.network)
	s.settings = []string{"-e", "provision=false", "-e", "app_image=" + appImage(),
		"-e", "monitoring_webhook=" + s.operator.hook + "/alert", "-e", "monitoring_heartbeat=" + s.operator.hook + "/heartbeat",
		"-e", "monitoring_email=operator@example.org", "-e", "monitoring_smtp=" + s.operator.smtp,
		"-e", `{"ignored_networks": ["203.0.113.0/24", "2001:db8::/48"]}`,
		// All of a test's clients have one address.
		"-e", "requests_per_second=100000",
		// Every process of the deployment must know it: another one is refused.
		"-e", "visitor_key=" + strings.Repeat("0123456789abcdef", 4)}
	s.first = s.play(t, "site.yml", "-e", "app_image_archive="+archive(t, image))
	s.first.require(t)
	record("site.yml: two bare hosts to a counting page", 0, 0, s.first.Took, "")
	return s
}

// edge is the host that the visitors reach, and the database's.
func (s *service) edge() *host { return s.hosts[0] }

func (s *service) url(path string) string { return cmp.Or(s.front, "http://"+s.edge().ip) + path }

// play runs a playbook on the service, which may fail.
func (s *service) play(t *testing.T, playbook string, args ...string) play {
	t.Helper()
	return tryAnsible(t, nil, s.inventory, playbook, slices.Concat(s.settings, args)...)
}

// deploy runs deploy.yml for a version whose image is on this machine.
func (s *service) deploy(t *testing.T, version string, args ...string) play {
	t.Helper()
	return s.play(t, "deploy.yml", append([]string{"-e", "version=" + version, "-e", "back=true", "-e", "app_image_archive=" + archive(t, appImage()+":"+version)}, args...)...)
}

// variant makes a release's image from a changed copy of the repository.
func variant(t *testing.T, version string, change func(dir string)) {
	t.Helper()
	dir := copyRepo(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "version.txt"), []byte(version+"\n"), 0o644))
	change(dir)
	buildRelease(t, version, dir)
}

// live is, in a shell on a host, the name of the container that serves there.
const live = "footfall-$(dirname $(readlink /var/lib/footfall/live.sock))"

// get asks the service and returns status and body.
func (s *service) get(path string, header ...string) (int, string, error) {
	return fetch(s.url(path), header...)
}

// fetch makes one GET on a new connection; header is name and value, several times.
func fetch(url string, header ...string) (int, string, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// visit opens the page, which has to be there.
func (s *service) visit(t *testing.T, header ...string) string {
	t.Helper()
	status, body, err := s.get("/", header...)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status, body)
	return body
}

// totals are what /api/stats says.
type totals struct {
	Visits, Visitors int
}

func (s *service) totals(t *testing.T) totals {
	t.Helper()
	var n totals
	status, body, err := s.get("/api/stats")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status, body)
	require.NoError(t, json.Unmarshal([]byte(body), &n))
	return n
}

// running is the version that each host's live slot answers with.
func (s *service) running(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, h := range s.hosts {
		var v struct{ Version string }
		body := h.must(t, "curl -sf --unix-socket /var/lib/footfall/live.sock http://footfall/version")
		require.NoError(t, json.Unmarshal([]byte(body), &v), body)
		all = append(all, v.Version)
	}
	return all
}

// sql asks the service's database.
func (s *service) sql(t *testing.T, query string) string {
	t.Helper()
	return s.edge().must(t, fmt.Sprintf("cd / && runuser -u postgres -- psql -X -d footfall -qAtc %q", query))
}

// recount runs footfall verify on the live database; it fails on a difference.
func (s *service) recount(t *testing.T) string {
	t.Helper()
	return s.edge().must(t, "docker exec "+live+" /footfall verify")
}

// awaitPage waits until a visit is answered 200 and says how long that took.
func (s *service) awaitPage(t *testing.T, limit time.Duration, what string) time.Duration {
	t.Helper()
	begin := time.Now()
	eventually(t, limit, what, func() error {
		status, body, err := s.get("/")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d: %.200s", status, body)
		}
		return err
	})
	return time.Since(begin)
}
