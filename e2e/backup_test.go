//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// testBackups has the repository that needs no setting, and lets the operator learn that it is on the host, and of a
// backup that fails. TestDatabase has the others, and loses data.
func testBackups(t *testing.T, s *service) {
	const metrics = "cat /var/lib/prometheus/node-exporter/footfall-backup.prom"
	assert.Equal(t, "active\nactive\nactive", s.edge().must(t, "systemctl is-active footfall-backup.timer footfall-recount.timer footfall-drill.timer"))
	assert.NotContains(t, s.edge().must(t, metrics), "footfall_backup_last_success_timestamp_seconds 0", "site.yml makes the first one")

	t.Run("how long WAL may wait", func(t *testing.T) {
		// At most until four fifths of the disk are full of segments, one every 30 s.
		s.edge().must(t, "systemctl start footfall-backup.service")
		s.edge().must(t, `limit=$(df --output=used,avail -B1 /srv/footfall | awk 'NR == 2 { print ($2 - ($1 + $2) / 5) / 16777216 * 30 }')
			`+metrics+` | awk -v limit="$limit" '/^footfall_archive_patience_seconds/ { found = $2 > limit / 2 && $2 < limit * 1.1 } END { exit !found }'`)
	})

	t.Run("drill", func(t *testing.T) {
		s.visit(t)
		before := s.totals(t)
		p := s.play(t, "restore.yml")
		p.require(t)
		record("restore drill", 0, 0, p.Took, "")
		assert.Regexp(t, `drill: \d+ visits restored in [\d.]+ seconds; missing of the live ones: \d+ visits`,
			strings.Join(strings.Fields(p.Output), " "))
		assert.Equal(t, before, s.totals(t), "the live database was touched")
		s.edge().must(t, "! test -e /srv/footfall/drill && grep last_success /var/lib/prometheus/node-exporter/footfall-drill.prom")
	})

	// Both leave what the page says.
	s.edge().must(t, "systemctl start footfall-recount.service")
	assert.Equal(t, "recount true, restore true", s.edge().must(t, `cd / && runuser -u postgres -- psql --no-psqlrc -At --dbname footfall --command "SELECT string_agg(kind || ' ' || agreed, ', ' ORDER BY kind) FROM evidence"`))

	t.Run("dump", func(t *testing.T) {
		const dumps = "ls /srv/footfall/repository/dump"
		s.edge().must(t, "systemctl start footfall-backup.service") // as the timer does within the hour: the first dump is older than the count
		s.edge().must(t, `cd / && runuser -u postgres -- createdb --owner=footfall e2e_dump && cat /srv/footfall/repository/dump/$(ls /srv/footfall/repository/dump | tail -n 1) | runuser -u postgres -- pg_restore --no-owner --role=footfall --exit-on-error --dbname=e2e_dump
			footfall-db verify e2e_dump && runuser -u postgres -- dropdb e2e_dump`)
		before := s.edge().must(t, dumps)

		// One that is cut off on its way, though every program says that it succeeded.
		s.edge().must(t, `printf '#!/bin/sh\n/usr/bin/pg_dump "$@" | head -c -100\n' > /usr/local/bin/pg_dump && chmod 755 /usr/local/bin/pg_dump
			sed -i '/^footfall_dump_last_success/s/ .*/ 0/' /var/lib/prometheus/node-exporter/footfall-backup.prom
			! systemctl start footfall-backup.service`)
		assert.Equal(t, before, s.edge().must(t, dumps))
		assert.Contains(t, s.edge().must(t, metrics), "footfall_dump_last_success_timestamp_seconds 0")
		assert.Contains(t, s.edge().must(t, "journalctl -u footfall-backup -o cat -n 20"), "is not whole, and is removed")

		s.edge().must(t, "rm /usr/local/bin/pg_dump && systemctl start footfall-backup.service")
		assert.NotContains(t, s.edge().must(t, metrics), "footfall_dump_last_success_timestamp_seconds 0")
		assert.Contains(t, s.edge().must(t, dumps), before+"\n")
	})

	t.Run("a failing backup is visible", func(t *testing.T) {
		s.edge().must(t, "chmod 0 /srv/footfall/repository && ! systemctl start footfall-backup.service")
		defer s.edge().must(t, "chmod 700 /srv/footfall/repository && systemctl start footfall-backup.service")
		assert.Equal(t, "failed", s.edge().must(t, "systemctl is-failed footfall-backup.service"), "which HostUnitFailed tells")
		assert.NotContains(t, s.edge().must(t, metrics), "footfall_backup_last_success_timestamp_seconds 0", "the last success is kept")
		eventually(t, 3*time.Minute, "mail and hook bring an alert", func() error { return s.operator.told("BackupOnThisHost") })
		eventually(t, 2*time.Minute, "the heartbeat is called", func() error {
			if s.operator.heartbeats() == 0 {
				return fmt.Errorf("not yet")
			}
			return nil
		})
	})
}
