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

// testFaults breaks one part after the other while clients ask on, and lets the service come back
// by itself. Each fault records for how long nothing was counted and what the clients saw.
func testFaults(t *testing.T, s *service) {
	pause := 20 * time.Millisecond
	s.visit(t) // the clients of all the load are this one visitor

	// counted compares what the clients were answered with what the database holds: an answered
	// visit is never lost. One whose host died between commit and answer is tried on the other host,
	// and then counted twice: at most the requests that were in flight.
	counted := func(t *testing.T, before totals, r loadResult, others, inFlight int) {
		t.Helper()
		after := s.totals(t)
		assert.GreaterOrEqual(t, after.Visits, before.Visits+r.Counted+others, "an answered visit was lost")
		assert.LessOrEqual(t, after.Visits, before.Visits+r.Counted+others+inFlight)
		assert.Equal(t, before.Visitors, after.Visitors)
		s.recount(t)
	}
	t.Run("service killed", func(t *testing.T) {
		before := s.totals(t)
		l := startLoad(t, s.url("/"), 8, pause)
		// From outside Docker, as the kernel's out-of-memory killer does it.
		s.edge().must(t, "kill -9 $(docker inspect -f '{{.State.Pid}}' "+live+")")
		begin := time.Now()
		eventually(t, time.Minute, "the edge's service is back", func() error {
			_, err := s.edge().sh("curl -sf --unix-socket /var/lib/footfall/live.sock http://footfall/readyz")
			return err
		})
		back := time.Since(begin)
		r := l.finish()
		record("service on the edge killed", r.Requests, r.Failed, back, "page from the other host; failed GETs %d", r.failedGETs())
		assert.Zero(t, r.failedGETs(), "%s", r)
		counted(t, before, r, 0, 8)
	})

	t.Run("database killed", func(t *testing.T) {
		before := s.totals(t)
		starts := s.starts(t)
		l := startLoad(t, s.url("/"), 8, pause)
		killed := s.edge().must(t, "systemctl show -P MainPID postgresql@17-footfall")
		s.edge().must(t, "kill -9 "+killed)
		away := s.awaitRestart(t, killed)
		r := l.finish()
		record("PostgreSQL killed", r.Requests, r.Failed, away, "slowest answer %d ms", r.Slowest.Milliseconds())
		assert.Less(t, r.Slowest, 5*time.Second, "%s", r)
		assert.Equal(t, starts, s.starts(t), "the service was restarted")
		counted(t, before, r, 1, r.Failed+8)
	})

	t.Run("database stopped", func(t *testing.T) {
		before := s.totals(t)
		starts := s.starts(t)
		s.edge().must(t, "systemctl stop postgresql@17-footfall")
		begin := time.Now()
		status, body, err := s.get("/")
		took := time.Since(begin)
		require.NoError(t, err)
		assert.Equal(t, http.StatusServiceUnavailable, status)
		assert.Contains(t, body, "The database is not responding.")
		assert.Less(t, took, 3*time.Second)
		s.edge().must(t, "systemctl start postgresql@17-footfall")
		back := s.awaitPage(t, time.Minute, "the page counts again")
		record("PostgreSQL stopped and started", 0, 0, back, "until it counts again; page says so after %d ms", took.Milliseconds())
		assert.Equal(t, starts, s.starts(t), "the service was restarted")
		counted(t, before, loadResult{}, 1, 0)
	})

	t.Run("other host cut off", func(t *testing.T) {
		before := s.totals(t)
		cut, edge := s.hosts[1], s.edge().ip
		cut.must(t, "iptables -I INPUT -s "+edge+" -j DROP && iptables -I OUTPUT -d "+edge+" -j DROP && iptables -I FORWARD -d "+edge+" -j DROP")
		begin := time.Now()
		l := startLoad(t, s.url("/"), 8, pause)
		eventually(t, time.Minute, "2,000 requests", func() error {
			if n := l.sent(); n < 2000 {
				return fmt.Errorf("%d so far", n)
			}
			return nil
		})
		cut.must(t, "iptables -D INPUT -s "+edge+" -j DROP && iptables -D OUTPUT -d "+edge+" -j DROP && iptables -D FORWARD -d "+edge+" -j DROP")
		seen := strings.TrimSpace(cut.must(t, "wc -l < /var/log/nginx/access.log"))
		eventually(t, time.Minute, "the host is asked again", func() error {
			if now := strings.TrimSpace(cut.must(t, "wc -l < /var/log/nginx/access.log")); now == seen {
				return fmt.Errorf("still %s lines", now)
			}
			return nil
		})
		r := l.finish()
		record("second host cut off and back", r.Requests, r.Failed, time.Since(begin), "slowest answer %d ms; failed GETs %d", r.Slowest.Milliseconds(), r.failedGETs())
		// What the edge sent into the dead line and then gave up on, its kernel goes on sending (tcp(7)): the host
		// gets it, and may count it, when the next retransmission finds the line back, seconds from now.
		eventually(t, time.Minute, "nothing is under way to the host", func() error {
			if left := s.edge().must(t, "ss -Htn dst "+cut.ip+" | awk '$3 > 0 || $1 == \"FIN-WAIT-1\"'") + cut.must(t, "ss -Htn state close-wait src "+cut.ip); left != "" {
				return fmt.Errorf("%s", left)
			}
			return nil
		})
		assert.Zero(t, r.failedGETs(), "%s", r)
		counted(t, before, r, 0, 8)
	})

	// The run goes on, and neither side hears that its connection has ended: the next run waits for the lock.
	t.Run("connection of a run cut", func(t *testing.T) {
		h := s.edge()
		operator, err := key()
		require.NoError(t, err)
		from := addressIn(t, s.network)
		hold := func() (string, error) {
			return docker("exec", controllerName(), "sh", "-c", fmt.Sprintf(`sleep 300 >/dev/null 2>&1 & echo $! >> %[1]s/runs
				%[2]s/ansible/roles/app/files/hold $! "a test" "ssh -T -o BatchMode=yes -o ControlPath=none -o ServerAliveInterval=5 `+
				`-o UserKnownHostsFile=%[3]s -i %[4]s -l admin %[5]s"`, shared(), repoDir(), strings.TrimSuffix(s.inventory, ".ini")+".known_hosts", operator, h.ip))
		}
		defer docker("exec", controllerName(), "sh", "-c", "kill $(cat "+shared()+"/runs)")
		_, err = hold()
		require.NoError(t, err)
		_, err = hold()
		assert.ErrorContains(t, err, "held by a test since")

		cut := h.must(t, `for port in $(ss -Htn state established "( sport = :22 )" dst `+from+` | awk '{ print $4 }' | cut -d : -f 2); do
			echo "INPUT -p tcp -s `+from+` --sport $port -j DROP"; echo "OUTPUT -p tcp -d `+from+` --dport $port -j DROP"
		done | tee /run/e2e-cut; while read -r rule; do iptables -I $rule; done < /run/e2e-cut`)
		require.NotEmpty(t, cut)
		begin := time.Now()
		eventually(t, 10*time.Second, "the holder is silent", func() error {
			_, err := h.sh("[ $(($(date +%s) - $(stat --format=%Y /run/footfall.lock))) -ge 5 ]")
			return err
		})
		_, err = hold()
		took := time.Since(begin)
		h.must(t, "while read -r rule; do iptables -D $rule; done < /run/e2e-cut")
		require.NoError(t, err)
		record("connection of a run cut", 0, 0, took, "then the next run has the lock")
		assert.Greater(t, took, 20*time.Second, "a run that is silent for a moment keeps the lock")
	})

	// Docker's daemon hangs, or is exchanged: then nobody reads what the service writes.
	t.Run("daemon of Docker stopped", func(t *testing.T) {
		before := s.totals(t)
		s.edge().must(t, "kill -s STOP $(pidof dockerd)")
		t.Cleanup(func() { s.edge().sh("kill -s CONT $(pidof dockerd)") })
		begin := time.Now()
		l := startLoad(t, s.url("/"), 8, pause)
		missing := make(chan error, 1)
		go func() {
			for range 2500 {
				answer, err := http.Get(s.url("/no-such-page"))
				if err == nil {
					answer.Body.Close()
				}
				if err != nil || answer.StatusCode != http.StatusNotFound {
					missing <- fmt.Errorf("no 404: %v", err)
					return
				}
			}
			missing <- nil
		}()
		eventually(t, 2*time.Minute, "5,000 requests", func() error {
			if n := l.sent(); n < 5000 {
				return fmt.Errorf("%d so far", n)
			}
			return nil
		})
		r := l.finish()
		assert.NoError(t, <-missing)
		s.edge().must(t, "kill -s CONT $(pidof dockerd)")
		record("daemon of Docker stopped", r.Requests, r.Failed, time.Since(begin), "")
		assert.Zero(t, r.Failed, "%s", r)
		counted(t, before, r, 0, 0)
	})

	t.Run("disk of the logs full", func(t *testing.T) {
		before := s.totals(t)
		s.edge().must(t, `mount -t tmpfs -o size=64k,mode=755 tmpfs /var/log/nginx && nginx -s reopen && ! dd if=/dev/zero of=/var/log/nginx/fill bs=1k 2>/dev/null`)
		begin := time.Now()
		l := startLoad(t, s.url("/"), 8, pause)
		eventually(t, time.Minute, "2,000 requests", func() error {
			if n := l.sent(); n < 2000 {
				return fmt.Errorf("%d so far", n)
			}
			return nil
		})
		r := l.finish()
		assert.Contains(t, s.edge().must(t, "df --output=pcent /var/log/nginx"), "100%")
		s.edge().must(t, "umount -l /var/log/nginx && nginx -s reopen")
		record("disk of the logs full", r.Requests, r.Failed, time.Since(begin), "")
		assert.Zero(t, r.Failed, "%s", r)
		counted(t, before, r, 0, 0)
	})

	t.Run("reboot", func(t *testing.T) {
		s.visit(t)
		before := s.totals(t)
		boot := s.edge().must(t, "cat /proc/sys/kernel/random/boot_id")
		begin := time.Now()
		s.edge().sh("systemctl reboot") // the host may be gone before it answers
		eventually(t, 3*time.Minute, "the edge reboots", func() error {
			now, err := s.edge().sh("cat /proc/sys/kernel/random/boot_id")
			if err == nil && now == boot {
				err = fmt.Errorf("still up")
			}
			return err
		})
		s.awaitPage(t, 2*time.Minute, "the page counts again after the reboot")
		record("edge and database rebooted", 0, 0, time.Since(begin), "back by itself")
		after := s.totals(t)
		assert.Equal(t, before.Visits+1, after.Visits)
		assert.Equal(t, before.Visitors, after.Visitors)
		s.recount(t)
	})
}

// starts returns when each host's service was started.
func (s *service) starts(t *testing.T) (all []string) {
	t.Helper()
	for _, h := range s.hosts {
		all = append(all, h.must(t, "docker inspect -f '{{.State.StartedAt}}' "+live))
	}
	return all
}
