//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testOperator asks what make status, logs, history, psql and rollback ask, with the inventory alone.
func testOperator(t *testing.T, s *service) {
	text, err := os.ReadFile(s.inventory)
	require.NoError(t, err)
	inventory := filepath.Join(shared(), "operator.ini")
	require.NoError(t, os.WriteFile(inventory, []byte(strings.ReplaceAll(string(text), " ansible_host=", " app_image="+appImage()+" ansible_host=")), 0o600))
	fleet := func(stdin string, arguments ...string) (string, error) {
		return shIn([]byte(stdin), "docker", append([]string{"exec", "--interactive", "--workdir", filepath.Join(repoDir(), "ansible"), "--env", "ANSIBLE_INVENTORY=" + inventory,
			controllerName(), "../delivery/fleet.py"}, arguments...)...)
	}

	t.Run("status", func(t *testing.T) {
		out, err := fleet("", "status")
		require.NoError(t, err, out)
		for _, h := range s.hosts {
			assert.Regexp(t, `(?m)^`+h.name+` +(blue|green) +`+s.version+` +yes +\d+[smhd] +\d+ +- +\d+%`, out)
		}
		assert.Regexp(t, `(?m)^lock: (free|.* since .*Z)$`, out)

		h := s.hosts[1]
		h.must(t, "docker pause "+live)
		defer h.must(t, "docker unpause "+live)
		out, err = fleet("", "status", "--json")
		assert.ErrorContains(t, err, "exit status 1")
		var rows []struct {
			Host, Version string
			Ready         bool
			Red           []string
		}
		require.NoError(t, json.Unmarshal([]byte(out), &rows), out)
		require.Len(t, rows, len(s.hosts))
		assert.Equal(t, []string{}, rows[0].Red[:0])
		assert.True(t, rows[0].Ready)
		assert.Equal(t, h.name, rows[1].Host)
		assert.False(t, rows[1].Ready)
		assert.Contains(t, rows[1].Red, "not ready")
	})

	t.Run("logs", func(t *testing.T) {
		for range 8 { // the edge takes the hosts in turn; an error has a line
			s.get("/no-such-page")
		}
		eventually(t, time.Minute, "every host's lines", func() error {
			out, err := fleet("", "logs", "1m")
			for _, h := range s.hosts {
				if err == nil && !strings.Contains(out, h.name+`  {"time":`) {
					err = fmt.Errorf("none of %s", h.name)
				}
			}
			return err
		})
	})

	t.Run("logs that cannot be had, and logs of some kind", func(t *testing.T) {
		out, err := fleet("", "logs", "nonsense", "--grep=never-there")
		assert.ErrorContains(t, err, "nonsense")
		assert.Empty(t, out)
		out, err = fleet("", "logs", "1h", "--grep=LISTENING|never-there")
		require.NoError(t, err)
		assert.Contains(t, out, `"msg":"listening"`)
		for line := range strings.Lines(out) {
			assert.Contains(t, strings.ToLower(line), "listening")
		}
	})

	t.Run("the log of the release before", func(t *testing.T) {
		if s.edge().must(t, "docker ps --all --format x | wc -l") == "1" {
			variant(t, "99.0.0", func(string) {})
			s.deploy(t, "99.0.0").require(t)
			s.deploy(t, s.version).require(t)
		}
		s.edge().must(t, "docker logs footfall-$([ $(dirname $(readlink /var/lib/footfall/live.sock)) = blue ] && echo green || echo blue) 2>&1 | grep -q listening")
		out, err := fleet("", "logs", "1h", "--grep=listening")
		require.NoError(t, err)
		assert.GreaterOrEqual(t, strings.Count(out, s.edge().name+" "), 2, "both releases begin in it")
	})

	t.Run("a host that cannot be asked", func(t *testing.T) {
		h := s.edge()
		h.must(t, "mv /usr/local/sbin/footfall-release /usr/local/sbin/away")
		defer h.must(t, "mv /usr/local/sbin/away /usr/local/sbin/footfall-release")
		out, err := fleet("", "status")
		assert.Error(t, err)
		assert.Contains(t, out, "lock: unknown")
	})

	t.Run("shell", func(t *testing.T) {
		out, err := fleet("hostname; exit 7\n", "ssh", "footfall-2")
		assert.ErrorContains(t, err, "exit status 7")
		assert.Equal(t, "footfall-2", tail(out, 1))
		_, err = fleet("", "ssh", "footfall-9")
		assert.ErrorContains(t, err, "no host is named footfall-9; there are footfall-1, footfall-2")
	})

	t.Run("forget", func(t *testing.T) {
		_, err := fleet("no address\n", "forget")
		assert.Error(t, err)
		s.visit(t)
		before := s.totals(t)
		out, err := fleet(s.network.addr(1)+"\n", "forget")
		require.NoError(t, err)
		assert.Regexp(t, `removed one visitor with [\d,]+ visits?`, out)
		assert.Equal(t, before, s.totals(t))
		s.visit(t)
		assert.Equal(t, before.Visitors+1, s.totals(t).Visitors)
	})

	// What a controller leaves that dies between confirm and finish, made by the steps themselves.
	t.Run("a run that died before its end", func(t *testing.T) {
		const version = "99.9.9"
		variant(t, version, func(string) {})
		s.deploy(t, version).require(t) // the image is on the hosts
		s.deploy(t, s.version).require(t)
		for _, h := range s.hosts {
			h.must(t, "while systemctl --quiet is-active footfall-drain; do sleep 0.1; done")
			h.must(t, "for step in prepare migrate start; do footfall-release $step dead "+appImage()+":"+version+" $([ $step != start ] || echo 60) </dev/null; done; footfall-release switch dead; footfall-release confirm dead")
		}
		settled := s.deploy(t, version)
		settled.require(t)
		for _, h := range s.hosts {
			eventually(t, time.Minute, "the slot before is gone", func() error {
				_, err := h.sh("! test -L /var/lib/footfall/back.sock && [ $(docker ps --format x | wc -l) = 1 ]")
				return err
			})
		}
		out, err := fleet("", "rollback")
		require.NoError(t, err, tail(out, 40))
		assert.Contains(t, out, "going back from "+version+" to "+s.version)
		assert.Equal(t, []string{s.version, s.version}, s.running(t))
	})

	t.Run("through make, with a static inventory", func(t *testing.T) {
		p := s.play(t, "deploy.yml", "-e", "version="+s.version)
		p.require(t)
		assert.Regexp(t, s.version+` runs\s+already,\s+nothing\s+was\s+replaced`, p.Output)
		out, err := docker("exec", "--workdir", repoDir(), "--env", "ANSIBLE_INVENTORY="+inventory, controllerName(), "delivery/ansible.sh", "ansible-playbook", "restore.yml")
		require.NoError(t, err, tail(out, 40))
		assert.Contains(t, out, "drill: ")
	})

	t.Run("psql", func(t *testing.T) {
		out, err := fleet("SELECT 'visits ' || visits FROM totals", "psql")
		require.NoError(t, err)
		assert.Regexp(t, `visits \d+`, out)
	})

	t.Run("rollback", func(t *testing.T) {
		// As a disk leaves it that was full for a moment.
		s.edge().must(t, `printf '{"at": "20' >> /var/lib/footfall/deployments.jsonl`)
		out, err := fleet("", "rollback", "0.0.1-nowhere")
		assert.Error(t, err, "no such image")
		assert.Contains(t, out, s.version+" still runs")

		before := s.running(t)[0]
		out, err = fleet("", "rollback")
		require.NoError(t, err, tail(out, 40))
		assert.Regexp(t, `(?m)^ *\d+[smhd] ago  .* -> 0.0.1-nowhere  failed  by `, out)
		after := s.running(t)
		assert.NotEqual(t, before, after[0])
		assert.Contains(t, out, "going back from "+before+" to "+after[0])
		for _, v := range after {
			assert.Equal(t, after[0], v)
		}
		out, err = fleet("", "history")
		require.NoError(t, err)
		assert.Regexp(t, before+` -> `+after[0]+`  deployed  by `, tail(out, 1))
		s.deploy(t, s.version).require(t)
	})
}
