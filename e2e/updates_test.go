//go:build e2e

package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// testUpdates replays on the edge what unattended-upgrades does on a night when Debian has fixed something, while clients ask on:
// each package is installed again over itself, with its scripts, and what runs then uses the new files. The longest time
// without a counted visit is what such a night costs.
func testUpdates(t *testing.T, s *service) {
	s.visit(t)
	// Where there is no logind, the processes of these connections belong to ssh.service and keep the old files.
	eventually(t, 2*time.Minute, "Ansible's connections have ended", func() error {
		_, err := s.edge().sh("! pgrep --exact sshd-session")
		return err
	})
	for _, update := range []struct {
		packages string
		gap      time.Duration // at most
	}{
		{"nginx-common nginx", 20 * time.Second}, // nginx-common stops it, and waits 5 s for idle connections
		{"postgresql-17", time.Minute},
		{"docker.io", 5 * time.Second}, // live-restore: containers run on
		{"containerd", 5 * time.Second},
		{"libssl3t64", time.Minute}, // needrestart restarts what has the old one loaded
	} {
		t.Run(update.packages, func(t *testing.T) {
			before := s.totals(t)
			starts := s.starts(t)
			programs := s.edge().must(t, "systemctl show -P MainPID docker nginx postgresql@17-footfall")
			l := startLoad(t, s.url("/"), 8, 20*time.Millisecond)
			begin := time.Now()
			s.edge().must(t, "DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 install --reinstall --no-install-recommends "+update.packages+" 2>&1 | tee /run/e2e-update")
			s.edge().must(t, "! grep -i 'dpkg: error\\|failed' /run/e2e-update")
			took := time.Since(begin)
			s.awaitPage(t, time.Minute, "the page counts")
			r := l.finish()
			record("update of "+update.packages, r.Requests, r.Failed, took, "longest time without a counted visit %d ms; 503 or worse %d", r.Away.Milliseconds(), r.failedGETs())
			assert.Less(t, r.Away, update.gap, "%s", r)
			assert.Equal(t, starts, s.starts(t), "the service was restarted")
			stored := s.totals(t).Visits - before.Visits - 1
			assert.GreaterOrEqual(t, stored, r.Counted, "an answered visit was lost")
			assert.LessOrEqual(t, stored, r.Counted+r.failedGETs())
			if update.packages == "libssl3t64" {
				assert.NotEqual(t, programs, s.edge().must(t, "systemctl show -P MainPID docker nginx postgresql@17-footfall"), "needrestart has nothing restarted")
				assert.Empty(t, s.edge().must(t, "needrestart -b -r l | grep ^NEEDRESTART-SVC | grep -v 'containerd\\|logind\\|unattended-upgrades' || true"), "services with old files")
			}
		})
	}
	assert.Equal(t, "enabled", s.edge().must(t, "systemctl is-enabled nginx"))
	s.recount(t)
}
