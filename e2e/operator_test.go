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
		for range 8 { // the edge takes the hosts in turn
			s.visit(t)
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
		assert.Contains(t, out, "going back to "+after[0])
		for _, v := range after {
			assert.Equal(t, after[0], v)
		}
		out, err = fleet("", "history")
		require.NoError(t, err)
		assert.Regexp(t, before+` -> `+after[0]+`  deployed  by `, tail(out, 1))
		s.deploy(t, s.version).require(t)
	})
}
