//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testConverge brings two bare hosts to a counting page; the second run and the dry run change nothing.
func testConverge(t *testing.T, s *service) {
	assert.Equal(t, []string{s.version, s.version}, s.running(t))
	said := strings.Join(strings.Fields(s.first.Output), " ")
	for _, words := range []string{"The page: " + s.url("/"), "Alerts reach operator@example.org and the webhook.", "WAL waits for it for at most", "To undo it, reinstall the hosts"} {
		assert.Contains(t, said, words)
	}

	t.Run("again", func(t *testing.T) {
		p := s.play(t, "site.yml")
		p.require(t)
		assert.Equal(t, 0, p.Changed, "%v", p.Tasks)
		record("site.yml again", 0, 0, p.Took, "changed=%d", p.Changed)
	})

	t.Run("dry run", func(t *testing.T) {
		p := s.play(t, "site.yml", "--check", "--diff")
		p.require(t)
		assert.Equal(t, 0, p.Changed, "%v", p.Tasks)
		assert.NotRegexp(t, `(?m)^(---|\+\+\+) `, p.Output, "a diff")
		record("site.yml --check --diff", 0, 0, p.Took, "changed=%d", p.Changed)
	})

	t.Run("wrong settings, all at once", func(t *testing.T) {
		p := s.play(t, "site.yml", "-e", "domain=Not_a_name", "-e", "user_url=javascript:alert(1)", "-e", "backup_keep=never")
		assert.Error(t, p.Err)
		for _, name := range []string{"domain is", "user_url is", "backup_keep is"} {
			assert.Contains(t, p.Output, name)
		}
		assert.NotContains(t, p.Recap, "footfall-1", "a host was touched")
	})

	// Each role alone puts right what is its own, on the second host, and touches nothing else. The role fleet is
	// alone in TestProvision, postgres, which the second host has not, in testBackupAndRestore.
	t.Run("each tag alone", func(t *testing.T) {
		second := s.hosts[1]
		started := "docker inspect -f '{{.State.StartedAt}}' " + live
		serving := second.must(t, started)
		before := s.totals(t)
		for _, tt := range []struct {
			tag, drift, check string // check: a script that succeeds when it is right again
		}{
			{"base", "sysctl -qw net.ipv4.tcp_slow_start_after_idle=1", "sysctl -n net.ipv4.tcp_slow_start_after_idle | grep -qx 0"},
			{"docker", "echo '{\"live-restore\": true}' > /etc/docker/daemon.json", "grep -q no-new-privileges /etc/docker/daemon.json && docker info -f '{{.LoggingDriver}}' | grep -qx local"},
			{"web", "echo '# drift' >> /etc/nginx/nginx.conf", "! grep drift /etc/nginx/nginx.conf"},
			{"monitoring", "systemctl stop prometheus-node-exporter", "systemctl -q is-active prometheus-node-exporter"},
			{"app", "docker rm -f " + live, "curl -sf --unix-socket /var/lib/footfall/live.sock http://footfall/readyz"},
			{"verify", "", ""},
		} {
			t.Run(tt.tag, func(t *testing.T) {
				if tt.drift != "" {
					second.must(t, tt.drift)
				}
				p := s.play(t, "site.yml", "--tags", tt.tag)
				p.require(t)
				p.changedOnly(t, tt.tag)
				if tt.drift == "" {
					assert.Zero(t, p.Changed, "%v", p.Tasks)
					return
				}
				assert.NotZero(t, p.Changed, "the drift was not seen")
				second.must(t, tt.check)
				if tt.tag != "app" {
					assert.Equal(t, serving, second.must(t, started), "the service was restarted")
				}
			})
		}
		assert.Equal(t, before, s.totals(t), "the looks from outside count nothing")
	})

	t.Run("apt's lock is held", func(t *testing.T) {
		second := s.hosts[1]
		second.must(t, "apt-get remove --yes logrotate && systemd-run --quiet --collect --unit e2e-apt python3 -c '"+firstBoot+"'")
		eventually(t, 10*time.Second, "the lock is held", func() error {
			_, err := second.sh("test -e /run/e2e-apt")
			return err
		})
		p := s.play(t, "site.yml", "--tags", "base")
		p.require(t)
		assert.Greater(t, p.Took, 70*time.Second)
		second.must(t, "command -v logrotate")
	})

	t.Run("forged addresses", func(t *testing.T) {
		s.visit(t)
		before := s.totals(t)
		// One hop and two; the edge takes them in turn to itself and to the other host.
		for i := range 10 {
			forged := fmt.Sprintf("198.51.100.%d", i)
			s.visit(t, "X-Forwarded-For", forged, "X-Real-IP", forged, "Forwarded", "for="+forged)
			s.visit(t, "X-Forwarded-For", "203.0.113.9, "+forged)
		}
		after := s.totals(t)
		assert.Equal(t, before.Visits+20, after.Visits)
		assert.Equal(t, before.Visitors, after.Visitors, "a forged header made a visitor")
		assert.Contains(t, s.hosts[1].must(t, "tail -n 200 /var/log/nginx/access.log"), `"path":"/"`, "the edge sent the other host nothing")
	})

	t.Run("another client is another visitor", func(t *testing.T) {
		before := s.totals(t)
		_, err := docker("exec", controllerName(), "curl", "-sf", "-o", "/dev/null", "-A", "another", s.url("/"))
		require.NoError(t, err)
		after := s.totals(t)
		assert.Equal(t, before.Visits+1, after.Visits)
		assert.Equal(t, before.Visitors+1, after.Visitors)
		assert.Equal(t, 2, after.Visitors, "this machine and the controller")
	})

	t.Run("kernel parameters are in force", func(t *testing.T) {
		for _, h := range s.hosts {
			for name, want := range kernelParameters(t) {
				got, err := h.sh("sysctl -n " + name)
				require.NoError(t, err)
				assert.Equal(t, want, got, "%s on %s", name, h.name)
			}
		}
	})

	t.Run("the node exporter's collectors run", func(t *testing.T) {
		for _, h := range s.hosts {
			h.must(t, "systemctl start prometheus-node-exporter-apt && test -s /var/lib/prometheus/node-exporter/apt.prom")
		}
	})

	t.Run("who may reach what", func(t *testing.T) {
		status, _, err := s.get("/metrics")
		require.NoError(t, err)
		assert.Equal(t, 404, status)
		for i, h := range s.hosts {
			assert.Equal(t, [][]string{{"22", "80"}, {"22"}}[i], strangerReaches(t, h), h.name)
			assert.Contains(t, s.edge().must(t, "curl -sf --cacert /etc/footfall/group.pem --connect-to footfall:8443:"+h.ip+":8443 https://footfall:8443/metrics"), "footfall_build_info{")
		}
		_, err = s.hosts[1].sh("curl -s --max-time 3 http://" + s.hosts[1].ip + ":80/")
		assert.Error(t, err, "the second host serves the public")
	})

	t.Run("a stranger attacks", func(t *testing.T) { testStranger(t, s) })

	t.Run("containers are shut in", func(t *testing.T) {
		for _, h := range s.hosts {
			got := h.must(t, `docker inspect -f '{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.Memory}} {{.HostConfig.PortBindings}} {{.HostConfig.RestartPolicy.Name}}' `+live)
			assert.Equal(t, "65532:33 true [ALL] 469762048 map[] unless-stopped", got)
			assert.Contains(t, h.must(t, "docker inspect -f '{{.Config.Env}}' "+live), "IGNORED_NETWORKS=203.0.113.0/24,2001:db8::/48 ")
		}
	})

	t.Run("services are shut in", func(t *testing.T) {
		// Debian's units score 9.2 to 9.6 of 10, "unsafe".
		for _, unit := range []string{"nginx", "postgresql@17-footfall", "footfall-backup", "footfall-drill", "footfall-recount", "prometheus-node-exporter", "prometheus"} {
			said := s.edge().must(t, "systemd-analyze security --no-pager "+unit+" | tail -n 1")
			var score float64
			_, err := fmt.Sscanf(said[strings.LastIndex(said, ": ")+2:], "%f", &score)
			require.NoError(t, err, said)
			assert.Less(t, score, 8.0, said)
		}
	})

	t.Run("no address and no secret in a log", func(t *testing.T) {
		client := s.network.addr(1) // this machine, as the hosts see it
		password := s.edge().must(t, "cat /etc/footfall/postgres/footfall")
		for _, h := range s.hosts {
			logs := h.must(t, "cat /var/log/nginx/*.log; docker logs "+live+" 2>&1; journalctl --no-pager -o cat")
			for line := range strings.Lines(logs) {
				assert.NotContains(t, line, password)
				if strings.Contains(line, `"request_id"`) || strings.Contains(line, `"route"`) {
					assert.NotContains(t, line, client+`"`)
				}
			}
		}
		for _, log := range []string{s.first.Output} {
			assert.NotContains(t, log, password)
		}
	})
}

// strangerReaches are the ports of a host that take a connection from the controller, which is in the hosts' network and none of them.
func strangerReaches(t *testing.T, h *host) []string {
	t.Helper()
	out, err := docker("exec", controllerName(), "bash", "-c", `for port in 22 80 443 5432 8443 9090 9093 9100 9113 9115 9187; do
		timeout 2 bash -c "exec 3<>/dev/tcp/`+h.ip+`/$port" 2>/dev/null && echo $port; done; true`)
	require.NoError(t, err)
	return strings.Fields(out)
}

// testStranger holds thousands of half-sent requests and idle connections to the database, from one address. Visitors are answered.
func testStranger(t *testing.T, s *service) {
	const attack = `
import socket, sys, time
held = {}
for port, text in (80, b"GET / HTTP/1.1\r\nHost: x\r\n"), (5432, b""):
    held[port] = [socket.socket() for _ in range(8400)]
    for s in held[port]:
        s.setblocking(False)
        s.connect_ex((sys.argv[1], port))
    time.sleep(2)  # the handshakes
    taken = 0
    for s in held[port]:
        try:
            s.send(text)
            s.getpeername()
            taken += 1
        except OSError:
            pass
    print(taken)
time.sleep(8)
`
	before := s.totals(t)
	l := startLoad(t, s.url("/"), 8, 20*time.Millisecond)
	begin := time.Now()
	taken, err := docker("exec", controllerName(), "python3", "-c", attack, s.edge().ip)
	require.NoError(t, err)
	assert.Equal(t, []string{"256", "0"}, strings.Fields(taken), "connections to the page and to PostgreSQL")
	s.sql(t, "SELECT 1") // the socket has room
	s.balance(t, "8,400 half-sent requests and as many connections to PostgreSQL, tried by one address", before, l.finish(), 0, time.Since(begin))

	// It stands beside Docker's rules, also when it is loaded again or a reboot loads both.
	const ours = "nft list table inet footfall | grep -c dport"
	rules := s.edge().must(t, ours+"; iptables-save | grep -c DOCKER")
	s.edge().must(t, "systemctl reload footfall-firewall && systemctl is-enabled footfall-firewall")
	assert.Equal(t, rules, s.edge().must(t, ours+"; iptables-save | grep -c DOCKER"))
	s.edge().must(t, "systemctl restart docker")
	assert.Equal(t, rules, s.edge().must(t, ours+"; iptables-save | grep -c DOCKER"))
}

// kernelParameters are those that the role base sets, by name.
func kernelParameters(t *testing.T) map[string]string {
	t.Helper()
	vars, err := os.ReadFile(filepath.Join(repoDir(), "ansible", "roles", "base", "vars", "main.yml"))
	require.NoError(t, err)
	parameters := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^  - ([a-z]\S+) = (\S+)$`).FindAllStringSubmatch(string(vars), -1) {
		parameters[m[1]] = m[2]
	}
	require.Greater(t, len(parameters), 5)
	return parameters
}
