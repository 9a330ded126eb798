//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testDeployUnderLoad replaces the release while clients with kept-alive connections ask on: an
// upgrade with a migration, a release that never gets ready, a second deployment meanwhile, the
// way back. Not one request of at least 50,000 may fail.
func testDeployUnderLoad(t *testing.T, s *service) {
	const upgrade, broken = "99.1.0", "99.2.0"
	variant(t, upgrade, func(dir string) {
		files, err := filepath.Glob(filepath.Join(dir, "sql", "*.sql"))
		require.NoError(t, err)
		name := fmt.Sprintf("%04d_upgrade.sql", len(files)+1)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "sql", name), []byte("CREATE TABLE upgrade (at timestamptz);\n"), 0o644))
	})
	variant(t, broken, func(dir string) {
		// It migrates, but hangs instead of serving.
		require.NoError(t, os.WriteFile(filepath.Join(dir, "hang.go"), []byte(`package main

import ("fmt"; "os"; "time")

func init() {
	if len(os.Args) == 1 {
		fmt.Println("this release hangs before it serves")
		time.Sleep(time.Hour)
	}
}
`), 0o644))
	})
	before := s.totals(t)
	cpu := s.edge().nginxCPU(t)
	l := startLoad(t, s.url("/"), 16, 40*time.Millisecond)
	part := func(name string, do func() play) play {
		t.Helper()
		from := l.sent()
		p := do()
		record(name+" under load", l.sent()-from, 0, p.Took, "")
		return p
	}

	p := part("upgrade with a migration", func() play { return s.deploy(t, upgrade) })
	p.require(t)
	assert.Equal(t, []string{upgrade, upgrade}, s.running(t))
	assert.Equal(t, "1", s.sql(t, "SELECT count(*) FROM pg_class WHERE relname = 'upgrade'"))

	// While the broken release is given its time, a second deployment is refused.
	s.edge().must(t, "flock --wait 5 /run/footfall.lock true") // of the run before, which has just ended
	first := make(chan play)
	go func() { first <- s.deploy(t, broken, "-e", "app_ready_timeout=20") }()
	eventually(t, time.Minute, "the broken release's deployment takes the lock", func() error {
		_, err := s.edge().sh("! flock --nonblock /run/footfall.lock true")
		return err
	})
	second := s.play(t, "deploy.yml", "-e", "version="+s.version)
	assert.Error(t, second.Err)
	assert.Contains(t, second.Output, "take the lock of the fleet: held by unknown at controller since ")
	p = part("release that never gets ready", func() play { return <-first })
	assert.Error(t, p.Err)
	assert.Contains(t, p.Output, "this release hangs before it serves", "the container's log")
	assert.Contains(t, strings.Join(strings.Fields(p.Output), " "), broken+" is not ready after 20 s, restarted 0 times; /readyz: 000")
	assert.Equal(t, []string{upgrade, upgrade}, s.running(t))
	for _, h := range s.hosts {
		eventually(t, time.Minute, "the broken release is kept, stopped", func() error {
			if all := h.must(t, "docker ps -a --format '{{.Image}} {{.State}}'"); !strings.Contains(all, ":"+broken+" exited") {
				return fmt.Errorf("%s", all)
			}
			return nil
		})
	}

	p = part("rollback", func() play { return s.deploy(t, s.version) })
	p.require(t)
	assert.Regexp(t, upgrade+` -> `+s.version+` on footfall-1, footfall-2\s+in \d+ s;\s+0\s+of\s+[1-9]\d+\s+visits\s+meanwhile\s+were\s+not\s+counted;\s+back:\s+ansible-playbook\s+deploy.yml\s+-e\s+version=`+upgrade, p.Output)
	assert.Equal(t, []string{s.version, s.version}, s.running(t))
	eventually(t, 3*time.Minute, "50,000 requests", func() error {
		if n := l.sent(); n < 50_000 {
			return fmt.Errorf("%d so far", n)
		}
		return nil
	})

	r := l.finish()
	record("upgrade, broken release, rollback", r.Requests, r.Failed, r.Took, "slowest answer %d ms; nginx on the edge took %d µs of processor a request",
		r.Slowest.Milliseconds(), (s.edge().nginxCPU(t)-cpu).Microseconds()/int64(r.Requests))
	assert.Zero(t, r.Failed, "%s", r)
	assert.Equal(t, before.Visits+r.Counted, s.totals(t).Visits, "each answered visit is counted once")
	t.Log(s.recount(t))

	history := s.edge().must(t, "cat /var/lib/footfall/deployments.jsonl")
	assert.Regexp(t, `(?s)"to": "99.1.0", "without": \[\], "result": "deployed".*"to": "99.2.0", "without": \[\], "result": "failed".*"from": "99.1.0", "to": "`+s.version+`", "without": \[\], "result": "deployed"`, history)
	eventually(t, time.Minute, "the old slot is gone", func() error {
		_, err := s.edge().sh("! systemctl is-active footfall-drain")
		return err
	})
	images := s.edge().must(t, "docker images --format '{{.Tag}}' "+appImage())
	assert.NotContains(t, images, broken, "a failed release's image is kept")
	assert.Contains(t, images, upgrade, "the way forward again")
}

// nginxCPU is the processor time that the host's nginx has taken since its workers were started.
func (h *host) nginxCPU(t *testing.T) time.Duration {
	t.Helper()
	// utime and stime of proc_pid_stat(5), in ticks of 10 ms.
	ticks, err := strconv.Atoi(h.must(t, "cat $(pgrep -x nginx | sed 's|.*|/proc/&/stat|') | awk '{ sum += $14 + $15 } END { print sum }'"))
	require.NoError(t, err)
	return time.Duration(ticks) * 10 * time.Millisecond
}
