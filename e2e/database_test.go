//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestDatabase is the life of the database on one host and its volume, under load: PostgreSQL is killed; the volume appears late at boot; the repository
// is away; a moment is restored; host and volume are destroyed at once.
func TestDatabase(t *testing.T) {
	image := release(t)
	s := &service{fleet: bootHosts(t, 2), version: repoVersion(t)}
	defer s.remove()
	keeper := s.hosts[1] // keeps the repository, and is none of footfall's hosts
	s.hosts = s.hosts[:1]
	s.writeInventory(t)
	var volume *device
	plug := func() { s.edge().must(t, "mknod /dev/nvme1n1 b 7 "+strings.TrimPrefix(volume.loop, "/dev/loop")) }
	newVolume := func(name string) {
		var err error
		volume, err = newDevice(name, 8<<30)
		require.NoError(t, err)
		plug()
	}
	newVolume("database")
	s.settings = []string{"-e", "provision=false", "-e", "app_image=" + appImage(), "-e", "app_image_archive=" + archive(t, image), "-e", "monitoring=false",
		"-e", "requests_per_second=100000", "-e", "data_device=/dev/nvme1n1", "-e", "backup_passphrase=" + passphrase}
	repository := s.sftp(t, keeper)
	passed := true
	part := func(name string, test func(t *testing.T)) { passed = passed && t.Run(name, test) }
	site := func(t *testing.T, args ...string) play {
		t.Helper()
		p := s.play(t, "site.yml", append(args, repository...)...)
		p.require(t)
		assert.NotContains(t, p.Output, passphrase)
		return p
	}

	part("a volume that cannot be read", func(t *testing.T) {
		require.NoError(t, os.Truncate(volume.file, 0)) // each read of the device fails from now on
		p := s.play(t, "site.yml", append(repository, "--tags", "postgres")...)
		assert.Error(t, p.Err)
		assert.Contains(t, p.Output, "Input/output error")
		require.NoError(t, os.Truncate(volume.file, 8<<30))
		s.edge().must(t, "cmp --bytes=1048576 /dev/nvme1n1 /dev/zero") // it is as blank as before
	})

	part("the first run", func(t *testing.T) {
		p := site(t)
		assert.Contains(t, strings.Join(strings.Fields(p.Output), " "), "made a new database, since the repository is empty: the count begins at zero")
		assert.NotContains(t, p.Output, s.edge().must(t, "cat /etc/footfall/postgres/footfall"), "the password")
		assert.Equal(t, "C.UTF-8 17", s.sql(t, "SELECT datcollate || ' ' || current_setting('server_version_num')::int / 10000 FROM pg_database WHERE datname = 'footfall'"))
		assert.Equal(t, "on", s.sql(t, "SHOW data_checksums"))
		for range 3 {
			s.visit(t)
		}
		assert.Equal(t, []string{"22", "80"}, strangerReaches(t, s.edge()))
		assert.NotContains(t, s.edge().must(t, "ss --no-header --tcp --listening --numeric | awk '{ print $4 }'"), ":5432", "PostgreSQL listens on its socket only")
		s.edge().must(t, "! nginx -T 2>/dev/null | grep -F '[::]'") // these hosts have no IPv6
		again := site(t)
		assert.Zero(t, again.Changed, "%v", again.Tasks)
		assert.NotContains(t, s.edge().must(t, "ps -eo args"), passphrase)
	})

	part("a deployment from another image name", func(t *testing.T) {
		const version = "99.9.0"
		other := "ghcr.io/example/footfall:" + version
		variant(t, version, func(string) {})
		_, err := docker("tag", appImage()+":"+version, other)
		require.NoError(t, err)
		defer docker("rmi", other)
		s.play(t, "deploy.yml", "-e", "version="+version, "-e", "app_image=ghcr.io/example/footfall", "-e", "app_image_archive="+archive(t, other)).require(t)
		s.visit(t)
		s.awaitArchived(t)
		assert.Contains(t, s.drill(t), "missing of the live ones: 0 visits")
		s.deploy(t, s.version).require(t)
	})

	part("PostgreSQL is killed", func(t *testing.T) {
		for _, victim := range []struct{ name, pid string }{
			{"PostgreSQL", "$MAINPID"},
			{"a process of PostgreSQL", "$(pgrep --parent $MAINPID --full 'background writer')"},
		} {
			before := s.totals(t)
			l := startLoad(t, s.url("/"), 8, 20*time.Millisecond)
			main := s.edge().must(t, "systemctl show -P MainPID postgresql@17-footfall")
			s.edge().must(t, "MAINPID="+main+"; kill -9 "+victim.pid)
			away := s.awaitRestart(t, main)
			s.balance(t, victim.name+" killed with -9", before, l.finish(), 1, away)
		}
	})

	part("the volume appears late", func(t *testing.T) {
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

	part("the repository is away", func(t *testing.T) {
		before := s.totals(t)
		l := startLoad(t, s.url("/"), 4, 50*time.Millisecond)
		keeper.must(t, "systemctl stop ssh")
		begin := time.Now()
		s.awaitRefused(t)
		keeper.must(t, "systemctl start ssh")
		s.awaitArchived(t)
		assert.Equal(t, "0", s.dropped(t))
		s.balance(t, "repository away, then back", before, l.finish(), 0, time.Since(begin))
	})

	part("the repository is away until the disk is short", func(t *testing.T) {
		before := s.totals(t)
		l := startLoad(t, s.url("/"), 4, 50*time.Millisecond)
		keeper.must(t, "systemctl stop ssh")
		begin := time.Now()
		s.edge().must(t, "fallocate -l 5500M /srv/footfall/fill")
		wal := func(megabytes int) {
			s.sql(t, fmt.Sprintf("SELECT count(pg_logical_emit_message(false, 'e2e', repeat('x', 1000000))) FROM generate_series(1, %d)", megabytes))
		}
		wal(1200)
		eventually(t, 5*time.Minute, "WAL is dropped", func() error {
			if s.dropped(t) == "0" {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		for range 12 { // as much again would be the end of the disk if the queue were kept
			wal(100)
			s.awaitArchived(t)
		}
		used := s.edge().must(t, "df --output=pcent /srv/footfall | tail -n 1")
		keeper.must(t, "systemctl start ssh")
		r := l.finish()
		s.edge().must(t, "rm /srv/footfall/fill && systemctl start footfall-backup")
		s.balance(t, "repository away until WAL is dropped", before, r, 0, time.Since(begin))
		t.Logf("disk used:%s, %s segments dropped", used, s.dropped(t))
		assert.Contains(t, s.drill(t), "missing of the live ones: 0 visits", "the full backup that follows")
	})

	part("back to a moment", func(t *testing.T) {
		startAndFinish := func() loadResult {
			l := startLoad(t, s.url("/"), 8, 20*time.Millisecond)
			eventually(t, time.Minute, "500 requests", func() error {
				if n := l.sent(); n < 500 {
					return fmt.Errorf("%d so far", n)
				}
				return nil
			})
			return l.finish()
		}
		startAndFinish()
		good, moment := s.totals(t), s.sql(t, "SELECT clock_timestamp()")
		bad := startAndFinish()
		assert.Equal(t, good.Visits+bad.Counted, s.totals(t).Visits)
		s.awaitArchived(t)
		p := s.play(t, "restore.yml", "-e", "restore_into=live", "-e", `{"restore_to": "`+moment+`"}`)
		p.require(t)
		record("restored to a moment", 0, 0, p.Took, "%d visits since are gone, %d before it are there", bad.Counted, good.Visits)
		assert.Equal(t, good, s.totals(t))
		s.recount(t)
		s.edge().must(t, "rm -r /srv/footfall/postgresql/17-before-*")
	})

	// PostgreSQL goes on from a restore in a new timeline, and by itself never looks at an older one again.
	part("back to a moment that is too early, then to the right one", func(t *testing.T) {
		now := func() string { return s.sql(t, "SELECT clock_timestamp()") }
		restore := func(to string) string {
			p := s.play(t, "restore.yml", "-e", "restore_into=live", "-e", `{"restore_to": "`+to+`"}`)
			p.require(t)
			return strings.Join(strings.Fields(p.Output), " ")
		}
		s.visit(t)
		early, few := now(), s.totals(t)
		for range 5 {
			s.visit(t)
		}
		right, good := now(), s.totals(t)
		s.visit(t)
		s.sql(t, "UPDATE totals SET visits = 0")
		s.awaitArchived(t)
		restore(early)
		assert.Equal(t, few, s.totals(t))
		s.visit(t)
		s.awaitArchived(t)
		restore(right)
		assert.Equal(t, good, s.totals(t), "the second restore has to find the first history")
		restore("before")
		assert.Equal(t, few.Visits+1, s.totals(t).Visits, "what the second restore replaced")
		s.visit(t)
		s.awaitArchived(t)
		assert.Contains(t, s.drill(t), "missing of the live ones: 0 visits", "of what is live now")
		s.edge().must(t, "rm -r /srv/footfall/postgresql/17-before-*")
	})

	part("host and volume are destroyed at once", func(t *testing.T) {
		known := s.totals(t)
		type reading struct {
			at     time.Time
			visits int
		}
		var seen []reading
		l := startLoad(t, s.url("/"), 8, 20*time.Millisecond)
		begin := time.Now()
		eventually(t, 3*time.Minute, "100 seconds of visits", func() error {
			seen = append(seen, reading{time.Now(), s.totals(t).Visits})
			if time.Since(begin) < 100*time.Second {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		_, err := docker("rm", "-f", "-v", s.edge().container)
		require.NoError(t, err)
		destroyed := time.Now()
		r := l.finish()
		path, err := newKey("another-footfall-1") // a new machine has a new key
		require.NoError(t, err)
		hostKey, err := os.ReadFile(path)
		require.NoError(t, err)
		s.hosts[0] = bootHost(t, s.network, "footfall-1", s.edge().ip, hostKey)
		s.edge().awaitBoot(t)
		s.writeInventory(t)
		newVolume("database-2")
		p := site(t)
		after := s.totals(t).Visits
		assert.Regexp(t, `restored the newest state of the repository: \d+ visits, the newest of 20`, strings.Join(strings.Fields(p.Output), " "))
		since := seen[0].at // the last moment that is restored
		for _, s := range seen {
			if s.visits <= after {
				since = s.at
			}
		}
		record("host and volume destroyed, made again from the repository", r.Requests, r.Failed, p.Took,
			"lost %d of %d visits: the last %.0f s", known.Visits+r.Counted-after, r.Counted, destroyed.Sub(since).Seconds())
		assert.Greater(t, after, known.Visits, "nothing of the load was restored")
		assert.Less(t, destroyed.Sub(since), time.Minute, "archive_timeout, and as much for sending a segment")
		s.recount(t)
		again := site(t)
		assert.Zero(t, again.Changed, "%v", again.Tasks)
	})

	part("a bucket", func(t *testing.T) {
		b := startBucket(t, s.network)
		require.NoError(t, b.introduce(s.edge()))
		repository = []string{"-e", "backup_repository=s3://" + bucketName, "-e", "backup_s3_endpoint=" + b.endpoint,
			"-e", "backup_s3_ca=/etc/ssl/bucket.pem", "-e", "backup_s3_key=nobody", "-e", "backup_s3_secret=no-secret"}
		site(t, "--tags", "postgres")
		before := s.totals(t)
		l := startLoad(t, s.url("/"), 4, 50*time.Millisecond)
		b.refusing.Store(true)
		begin := time.Now()
		s.awaitRefused(t)
		b.refusing.Store(false)
		s.balance(t, "bucket refuses, then takes", before, l.finish(), 0, time.Since(begin))
		s.sql(t, "SELECT pg_switch_wal()")
		s.awaitArchived(t)
		begin = time.Now()
		said := s.drill(t)
		record("restore drill from a bucket", 0, 0, time.Since(begin), "%s", said)
		assert.Contains(t, said, "missing of the live ones: 0 visits")
		b.refusing.Store(true)
		_, err := s.edge().sh("systemctl stop postgresql@17-footfall && mv /srv/footfall/postgresql/17 /srv/footfall/17 && footfall-db create")
		assert.ErrorContains(t, err, "read the repository", "a repository that cannot be read is no empty one")
		s.edge().must(t, "! test -e /srv/footfall/postgresql/17 && mv /srv/footfall/17 /srv/footfall/postgresql/17 && systemctl start postgresql@17-footfall")
	})
	require.True(t, passed)
}

// passphrase encrypts the repository.
const passphrase = "correct-horse-battery-staple"

// sftp makes an account for the repository on a host, and returns the settings that lead there.
func (s *service) sftp(t *testing.T, keeper *host) []string {
	t.Helper()
	private, err := newKey("sftp")
	require.NoError(t, err)
	public, err := os.ReadFile(private + ".pub")
	require.NoError(t, err)
	_, err = shIn(public, "docker", "exec", "-i", keeper.container, "sh", "-c", `useradd -m -s /usr/sbin/nologin keeper && cd ~keeper &&
		mkdir -m 700 .ssh && cat > .ssh/authorized_keys && chown -R keeper . && printf 'Match User keeper\n  ForceCommand internal-sftp\n' 		> /etc/ssh/sshd_config.d/keeper.conf && systemctl reload ssh`)
	require.NoError(t, err)
	return []string{"-e", "backup_repository=sftp://keeper@" + keeper.ip + "/home/keeper/repository", "-e", "backup_sftp_key=" + private,
		"-e", `{"backup_sftp_host_key": "` + keeper.hostKey + `"}`}
}

// drill tries a restore on the host and returns what it says of its cost.
func (s *service) drill(t *testing.T) string {
	t.Helper()
	return regexp.MustCompile(`(?m)^drill: .*`).FindString(s.edge().must(t, "footfall-db drill"))
}

// dropped is how many WAL segments were dropped.
func (s *service) dropped(t *testing.T) string {
	t.Helper()
	return s.edge().must(t, "awk '/^footfall_archive_dropped_total/ { n = $2 } END { print n + 0 }' /var/lib/prometheus/node-exporter/footfall-archive.prom")
}

// awaitArchived waits until PostgreSQL has no WAL left that the repository has not.
func (s *service) awaitArchived(t *testing.T) {
	t.Helper()
	s.sql(t, "SELECT pg_switch_wal()")
	eventually(t, 5*time.Minute, "the archive catches up", func() error {
		if left := s.edge().must(t, "ls /srv/footfall/postgresql/17/pg_wal/archive_status | grep -c ready || true"); left != "0" {
			return fmt.Errorf("%s segments wait", left)
		}
		return nil
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

// awaitRefused begins a new WAL segment and waits until the repository refuses the one before.
func (s *service) awaitRefused(t *testing.T) {
	t.Helper()
	const failures = "SELECT failed_count FROM pg_stat_archiver"
	before := s.sql(t, failures)
	s.sql(t, "SELECT pg_switch_wal()")
	eventually(t, 3*time.Minute, "the repository refuses a segment", func() error {
		if now := s.sql(t, failures); now == before {
			return fmt.Errorf("%s failures, as before", now)
		}
		return nil
	})
}
