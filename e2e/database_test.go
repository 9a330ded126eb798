//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestDatabase is the life of the database on one host and its volume, under load: the data move in from the
// container that ran PostgreSQL in earlier releases; PostgreSQL is killed; the volume appears late at boot.
func TestDatabase(t *testing.T) {
	image := release(t)
	s := &service{fleet: bootHosts(t, 1), version: repoVersion(t)}
	defer s.remove()
	volume, err := newDevice("database")
	require.NoError(t, err)
	plug := func() { s.edge().must(t, "mknod /dev/nvme1n1 b 7 "+strings.TrimPrefix(volume.loop, "/dev/loop")) }
	plug()
	s.settings = []string{"-e", "provision=false", "-e", "app_image=" + appImage(), "-e", "app_image_archive=" + archive(t, image), "-e", "monitoring=false",
		"-e", "requests_per_second=100000", "-e", "data_device=/dev/nvme1n1"}
	site := func(t *testing.T, args ...string) play {
		t.Helper()
		p := s.play(t, "site.yml", args...)
		p.require(t)
		return p
	}

	require.True(t, t.Run("the container's data move in", func(t *testing.T) {
		site(t, "--tags", "base,docker")
		// As the role made it: the container's account, its password, its folder on the volume.
		_, err := sh("sh", "-c", "docker save postgres:17 | docker exec -i "+s.edge().container+" docker load")
		require.NoError(t, err)
		s.edge().must(t, `mkfs.ext4 -q -L footfall /dev/nvme1n1 && mkdir -p /srv/footfall && mount /dev/nvme1n1 /srv/footfall &&
			mkdir -p /srv/footfall/postgres /etc/footfall/postgres && cd /etc/footfall/postgres && umask 077 &&
			echo for-tests > superuser && openssl rand -hex -out footfall 32 &&
			printf 'local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\nhost all all samenet scram-sha-256\n' > pg_hba.conf &&
			chown -R 999:999 . /srv/footfall/postgres && chmod 700 /srv/footfall/postgres &&
			docker run -d --name footfall-postgres --restart unless-stopped --user 999:999 -p `+s.edge().ip+`:5432:5432 -e PGDATA=/data \
			-e POSTGRES_PASSWORD_FILE=/etc/footfall/superuser -e 'POSTGRES_INITDB_ARGS=--data-checksums --locale=C --encoding=UTF8' \
			-v /srv/footfall/postgres:/data -v /etc/footfall/postgres:/etc/footfall:ro --tmpfs /var/run/postgresql:uid=999,gid=999 \
			postgres:17 -c hba_file=/etc/footfall/pg_hba.conf`)
		eventually(t, time.Minute, "the container takes connections", func() error {
			_, err := s.edge().sh("docker exec footfall-postgres pg_isready -q -h 127.0.0.1")
			return err
		})
		s.edge().must(t, `{ echo "CREATE ROLE footfall LOGIN PASSWORD '$(cat /etc/footfall/postgres/footfall)';"
			echo 'CREATE DATABASE footfall OWNER footfall;'; } | docker exec -i footfall-postgres psql -qU postgres`)
		password := s.edge().must(t, "cat /etc/footfall/postgres/footfall")
		site(t, "-e", "database_url=postgres://footfall:"+password+"@"+s.edge().ip+":5432/footfall?sslmode=disable")
		before := s.totals(t)

		l := startLoad(t, s.url("/"), 8, 20*time.Millisecond)
		p := site(t)
		s.balance(t, "PostgreSQL moves from the container to the host", before, l.finish(), 2, p.Took)
		assert.NotContains(t, p.Output, password)
		assert.Equal(t, "C.UTF-8 17", s.sql(t, "SELECT datcollate || ' ' || current_setting('server_version_num')::int / 10000 FROM pg_database WHERE datname = 'footfall'"))
		assert.Equal(t, "on", s.sql(t, "SHOW data_checksums"))
		s.edge().must(t, "test -e /srv/footfall/postgres-of-the-container/PG_VERSION && ! docker inspect footfall-postgres 2>/dev/null")
		again := site(t)
		assert.Zero(t, again.Changed, "%v", again.Tasks)
	}))

	t.Run("PostgreSQL is killed", func(t *testing.T) {
		before := s.totals(t)
		l := startLoad(t, s.url("/"), 8, 20*time.Millisecond)
		killed := s.edge().must(t, "systemctl show -P MainPID postgresql@17-footfall")
		s.edge().must(t, "kill -9 "+killed)
		away := s.awaitRestart(t, killed)
		s.balance(t, "PostgreSQL killed with -9", before, l.finish(), 1, away)
	})

	t.Run("the volume appears late", func(t *testing.T) {
		before := s.totals(t)
		boot := s.edge().must(t, "cat /proc/sys/kernel/random/boot_id")
		s.edge().sh("systemctl reboot") // the host may be gone before it answers
		eventually(t, 3*time.Minute, "the host reboots", func() error {
			now, err := s.edge().sh("cat /proc/sys/kernel/random/boot_id")
			if err == nil && now == boot {
				err = fmt.Errorf("still up")
			}
			return err
		})
		booted := time.Now()
		// The container's /dev is new at each boot: the device is away until it is made.
		eventually(t, 2*time.Minute, "the page says that it does not count", func() error {
			status, body, err := s.get("/")
			if err == nil && (status != http.StatusServiceUnavailable || time.Since(booted) < 30*time.Second) {
				err = fmt.Errorf("%d after %s: %.80s", status, time.Since(booted), body)
			}
			return err
		})
		s.edge().must(t, "! mountpoint -q /srv/footfall && ! test -e /srv/footfall/postgresql")
		plug()
		back := s.awaitPage(t, time.Minute, "the page counts")
		record("data volume 30 s late at boot", 0, 0, back, "from the volume's appearance to the first counted visit")
		assert.Equal(t, totals{before.Visits + 1, before.Visitors}, s.totals(t))
		s.recount(t)
	})
}

// balance compares what the clients of a load were answered with what is stored since, and records it. others are
// the visits meanwhile that are not the load's. A visit that was answered 503 may be stored.
func (s *service) balance(t *testing.T, what string, before totals, r loadResult, others int, took time.Duration) {
	t.Helper()
	stored := s.totals(t).Visits - before.Visits - others
	lost, doubled := max(0, r.Counted-stored), max(0, stored-r.Counted-r.failedGETs())
	record(what, r.Requests, r.Failed, took, "lost %d, doubled %d; slowest answer %d ms", lost, doubled, r.Slowest.Milliseconds())
	assert.Zero(t, lost, "answered visits that are not stored: %s", r)
	assert.Zero(t, doubled, "stored visits that nobody made: %s", r)
	t.Log(s.recount(t))
}

// awaitRestart waits until PostgreSQL runs under another number than before and a visit is counted, and says how
// long that took.
func (s *service) awaitRestart(t *testing.T, before string) time.Duration {
	t.Helper()
	begin := time.Now()
	eventually(t, time.Minute, "systemd starts PostgreSQL again", func() error {
		now, err := s.edge().sh("systemctl is-active -q postgresql@17-footfall && systemctl show -P MainPID postgresql@17-footfall")
		if err == nil && now == before {
			err = fmt.Errorf("not yet")
		}
		return err
	})
	s.awaitPage(t, time.Minute, "the page counts again")
	return time.Since(begin)
}
