//go:build e2e

package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testBackupAndRestore dumps, to the host's disk and to a bucket, loses the data with every dump on the disk, and
// brings them back from the bucket. The operator learns of a dump that fails.
func testBackupAndRestore(t *testing.T, s *service) {
	const bucket = "footfall-dumps"
	s3 := motoIn(t, s.network)
	inBucket := func(method string) string {
		t.Helper()
		out, err := sh("curl", "-sSf", "-X", method, "-H", "Authorization: "+authorization("us-east-1/s3"), s3+"/"+bucket)
		require.NoError(t, err)
		return out
	}
	inBucket("PUT")
	s.edge().must(t, "mkdir -p ~root/.aws && printf '[default]\\naws_access_key_id = nobody\\naws_secret_access_key = no-secret\\n' > ~root/.aws/credentials")
	s.settings = append(s.settings, "-e", "backup_bucket="+bucket, "-e", "backup_s3_endpoint="+s3)
	p := s.play(t, "site.yml", "--tags", "postgres")
	p.require(t)
	p.changedOnly(t, "postgres")

	assert.Equal(t, "active", s.edge().must(t, "systemctl is-active footfall-backup.timer"))
	s.visit(t)
	dumped := s.totals(t)
	begin := time.Now()
	s.edge().must(t, "systemctl start footfall-backup.service")
	record("dump", 0, 0, time.Since(begin), "")
	metrics := s.edge().must(t, "cat /var/lib/prometheus/node-exporter/footfall-backup.prom")
	assert.Contains(t, metrics, "footfall_backup_last_exit_status 0")
	assert.Regexp(t, `footfall_backup_size_bytes [1-9]`, metrics)
	succeeded := regexp.MustCompile(`last_success_timestamp_seconds (\d+)`).FindStringSubmatch(metrics)
	require.NotNil(t, succeeded)
	dump := regexp.MustCompile(`footfall-[0-9TZ]+\.dump`).FindString(inBucket("GET"))
	require.NotEmpty(t, dump, "the dump in the bucket")

	t.Run("a failing dump is visible", func(t *testing.T) {
		s.edge().must(t, "systemctl stop postgresql@17-footfall; ! systemctl start footfall-backup.service")
		s.edge().must(t, "systemctl start postgresql@17-footfall")
		s.awaitPage(t, time.Minute, "the page counts again")
		now := s.edge().must(t, "cat /var/lib/prometheus/node-exporter/footfall-backup.prom")
		assert.NotContains(t, now, "footfall_backup_last_exit_status 0")
		assert.Contains(t, now, succeeded[0], "the last success is kept")
	})

	t.Run("drill", func(t *testing.T) {
		before := s.totals(t)
		p := s.play(t, "restore.yml")
		p.require(t)
		record("restore drill", 0, 0, p.Took, "%s", cost(t, p))
		assert.Equal(t, before.Visits+2, s.totals(t).Visits, "the live database was touched; verify visits twice")
		assert.Equal(t, "footfall\npostgres", s.sql(t, "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1"))
	})

	t.Run("the data are lost", func(t *testing.T) {
		key := s.sql(t, "SELECT md5(string_agg(s::text, ',' ORDER BY s::text)) FROM settings s")
		lost := s.totals(t).Visits - dumped.Visits
		s.edge().must(t, "pg_dropcluster --stop 17 footfall && rm -rf /srv/footfall")
		begin := time.Now()
		// An empty database in its place, then the dump into that.
		s.play(t, "site.yml").require(t)
		assert.Less(t, s.totals(t).Visits, dumped.Visits, "the data are not lost")
		p := s.play(t, "restore.yml", "-e", "restore_into=live", "-e", "restore_dump=s3://"+bucket+"/"+dump)
		p.require(t)
		after := s.totals(t)
		assert.Equal(t, dumped.Visits+2, after.Visits, "verify visits twice")
		assert.Equal(t, key, s.sql(t, "SELECT md5(string_agg(s::text, ',' ORDER BY s::text)) FROM settings s"), "another visitor key: everyone is new")
		s.visit(t)
		assert.Equal(t, after.Visitors, s.totals(t).Visitors, "a known visitor is new after the restore")
		t.Log(s.recount(t))
		record("disk lost, restored from the bucket", 0, 0, time.Since(begin), "%s; %d visits lost", cost(t, p), lost)
	})

	t.Run("the operator is told of the failed dump", func(t *testing.T) {
		eventually(t, 3*time.Minute, "mail and hook bring BackupFailed", func() error { return s.operator.told("BackupFailed") })
		eventually(t, 2*time.Minute, "the heartbeat is called", func() error {
			if s.operator.heartbeats() == 0 {
				return fmt.Errorf("not yet")
			}
			return nil
		})
	})
}

// cost is the sentence of restore.yml with seconds and minutes.
func cost(t *testing.T, p play) string {
	t.Helper()
	m := regexp.MustCompile(`restored \S+ in ([\d.]+) seconds(?s:.*?)visits of the ([\d.]+)\s+minutes`).FindStringSubmatch(strings.Join(strings.Fields(p.Output), " "))
	require.NotNil(t, m, "what the restore cost")
	return m[1] + " s to restore, " + m[2] + " minutes lost"
}
