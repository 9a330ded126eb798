//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testOrder does what a tired person does to a fleet of two hosts: sorts the inventory, forgets what yesterday's command
// said, takes an old checkout, gives a database that does not answer. Then it makes the second host the first, and the first again.
func testOrder(t *testing.T, s *service) {
	said := func(p play) string { return strings.Join(strings.Fields(p.Output), " ") }
	secrets := func() []string {
		var all []string
		for _, h := range s.hosts {
			all = append(all, h.must(t, "for file in /etc/footfall/app-*/database_url; do cat $file; echo; done | sort -u"))
		}
		return all
	}
	turn := func() {
		slices.Reverse(s.hosts)
		s.writeInventory(t)
	}
	urls := secrets()

	t.Run("a forgotten image", func(t *testing.T) {
		var less []string // all but the image's name
		for i := 0; i < len(s.settings); i += 2 {
			if !strings.HasPrefix(s.settings[i+1], "app_image=") {
				less = append(less, s.settings[i:i+2]...)
			}
		}
		p := tryAnsible(t, nil, s.inventory, "site.yml", less...)
		p.require(t)
		assert.Zero(t, p.Changed, "%v", p.Tasks)
	})

	t.Run("an older release", func(t *testing.T) {
		for _, playbook := range []string{"deploy.yml", "site.yml"} {
			p := s.play(t, playbook, "-e", "version=0.9.0")
			assert.Error(t, p.Err)
			assert.Contains(t, said(p), "0.9.0 is older than "+s.version+", which serves; to go back: -e back=true, or make rollback")
		}
		assert.Equal(t, []string{s.version, s.version}, s.running(t))
	})

	t.Run("another order", func(t *testing.T) {
		turn()
		defer turn()
		for _, playbook := range []string{"site.yml", "deploy.yml"} {
			p := s.play(t, playbook, "-e", "version="+s.version)
			assert.Error(t, p.Err)
			assert.Zero(t, p.Changed, "%v", p.Tasks)
			assert.Contains(t, said(p), "footfall-1 has the database, and footfall-2 is the first host of the inventory")
		}
	})

	t.Run("a database that does not answer", func(t *testing.T) {
		before := s.totals(t)
		p := s.play(t, "site.yml", "--tags", "app", "-e", "database_url=postgres://nobody:nothing@127.0.0.1:1/none")
		assert.Error(t, p.Err)
		assert.Equal(t, urls, secrets(), "the release that goes on keeps its database")
		s.edge().must(t, "docker kill --signal KILL "+live) // started again, it reads what it was given
		s.awaitPage(t, time.Minute, "the page counts")
		assert.Equal(t, before.Visits+1, s.totals(t).Visits)
		p = s.play(t, "site.yml")
		p.require(t)
		assert.Equal(t, urls, secrets())
	})

	t.Run("a database of its own on one host", func(t *testing.T) {
		out, err := s.fleetStatus(t)
		require.NoError(t, err, out)
		second := s.hosts[1]
		second.must(t, `cp -p /usr/local/sbin/footfall-release /run/real && sed -i 's|"database": |"database": "2001-01-01T00:00:00Z", "was": |' /usr/local/sbin/footfall-release`)
		defer second.must(t, "cp -p /run/real /usr/local/sbin/footfall-release")
		out, err = s.fleetStatus(t)
		assert.Error(t, err)
		assert.Contains(t, out, "hosts count in different databases")
	})

	for _, name := range []string{"the second host becomes the first", "and the first again"} {
		t.Run(name, func(t *testing.T) {
			from := s.edge()
			before := s.totals(t)
			turn()
			l := startLoad(t, "http://"+from.ip+"/", 4, 50*time.Millisecond)
			begin := time.Now()
			p := s.play(t, "move.yml")
			r := l.finish()
			p.require(t)
			s.awaitPage(t, time.Minute, "the new first host counts")
			record("move.yml: "+name, r.Requests, r.Failed, time.Since(begin), "lost %d", before.Visits+r.Counted+1-s.totals(t).Visits)
			assert.Equal(t, before.Visits+r.Counted+1, s.totals(t).Visits)
			s.recount(t)
			again := s.play(t, "site.yml")
			again.require(t)
			assert.Zero(t, again.Changed, "%v", again.Tasks)
			assert.Equal(t, []string{"22"}, strangerReaches(t, from), "it is no longer an edge")
		})
	}
}

// fleetStatus is what make status says.
func (s *service) fleetStatus(t *testing.T) (string, error) {
	t.Helper()
	return docker("exec", "--workdir", repoDir()+"/ansible", "--env", "ANSIBLE_INVENTORY="+s.inventory, controllerName(), "../delivery/fleet.py", "status")
}
