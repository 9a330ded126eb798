//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestUpgradePostgres moves the database from the oldest major version that is supported to Debian 13's, under load. The
// upgrade is killed before each of its steps, taken back, and finished.
func TestUpgradePostgres(t *testing.T) {
	image := release(t)
	s := &service{fleet: bootHosts(t, 1), version: repoVersion(t)}
	defer s.remove()
	s.edge().must(t, "sed 's/trixie main/bookworm main/' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep '^deb .*bookworm main' > /etc/apt/sources.list.d/older.list")
	s.settings = []string{"-e", "provision=false", "-e", "app_image=" + appImage(), "-e", "app_image_archive=" + archive(t, image), "-e", "monitoring=false",
		"-e", "requests_per_second=100000"}
	const old, new = "postgres_version=15", "postgres_version=17"
	s.play(t, "site.yml", "-e", old).require(t)
	version := func() string { return s.sql(t, "SELECT current_setting('server_version_num')::int / 10000") }
	require.Equal(t, "15", version())
	for range 3 {
		s.awaitPage(t, time.Minute, "the page counts")
	}

	t.Run("site.yml upgrades nothing", func(t *testing.T) {
		p := s.play(t, "site.yml", "-e", new)
		assert.Error(t, p.Err)
		assert.Zero(t, p.Changed, "%v", p.Tasks)
		assert.Contains(t, p.Output, "postgres_version is 17 and the cluster is of PostgreSQL 15: set it to 15, or run upgrade-postgres.yml")
	})

	// Installs the new version; the step is the first that is not there yet.
	s.edge().must(t, "apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends postgresql-17")
	s.edge().must(t, `mkdir -p /etc/systemd/system/postgresql@17-footfall.service.d &&
		sed 's|/15/|/17/|g' /etc/systemd/system/postgresql@15-footfall.service.d/footfall.conf > /etc/systemd/system/postgresql@17-footfall.service.d/footfall.conf &&
		systemctl daemon-reload`)
	for _, step := range []string{"before=", "pg_upgradecluster ", "cp --preserve", "pg_conftool", "after=", "systemctl --quiet disable", "sed --in-place"} {
		t.Run("killed before "+step, func(t *testing.T) {
			before := s.totals(t)
			l := startLoad(t, s.url("/"), 4, 20*time.Millisecond)
			// Bash runs BASH_ENV first: a trap that sees each command before it runs.
			s.edge().must(t, fmt.Sprintf(`printf '%%s\n' 'set -T; trap '\''[[ $BASH_COMMAND != "%s"* ]] || kill -9 $$'\'' DEBUG' > /run/kill-at-step`, step))
			_, err := s.edge().sh("BASH_ENV=/run/kill-at-step footfall-db upgrade 17")
			assert.ErrorContains(t, err, "137", "the step is in the script")
			began := time.Now()
			s.edge().must(t, "footfall-db upgrade 15")
			s.awaitPage(t, time.Minute, "the page counts again")
			s.balance(t, "PostgreSQL's upgrade killed before "+strings.TrimRight(step, " =")+" and taken back", before, l.finish(), 1, time.Since(began))
			assert.Equal(t, "15", version())
			s.edge().must(t, "! test -e /srv/footfall/postgresql/17 && ! test -e /etc/postgresql/17/footfall")
		})
	}

	t.Run("killed after the step that decides", func(t *testing.T) {
		before := s.totals(t)
		l := startLoad(t, s.url("/"), 4, 20*time.Millisecond)
		s.edge().must(t, `printf '%s\n' 'set -T; trap '\''[[ $BASH_COMMAND != "VERSION=\$new" ]] || kill -9 $$'\'' DEBUG' > /run/kill-at-step`)
		_, err := s.edge().sh("BASH_ENV=/run/kill-at-step footfall-db upgrade 17")
		assert.ErrorContains(t, err, "137")
		_, err = s.edge().sh("footfall-db upgrade 15")
		assert.ErrorContains(t, err, "PostgreSQL has no way back to 15")
		p := s.play(t, "upgrade-postgres.yml", "-e", new)
		p.require(t)
		s.balance(t, "PostgreSQL upgraded from 15 to 17", before, l.finish(), 0, p.Took)
		assert.Equal(t, "17", version())
		assert.Equal(t, "on", s.sql(t, "SHOW data_checksums"))
		s.edge().must(t, "test -e /srv/footfall/postgresql/15/PG_VERSION")
		again := s.play(t, "site.yml", "-e", new)
		again.require(t)
		assert.Zero(t, again.Changed, "%v", again.Tasks)
	})
}
