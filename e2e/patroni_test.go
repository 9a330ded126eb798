//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestPatroni puts an existing engine beneath the service, by DATABASE_URL alone: a cluster of
// three whose leader is killed, host and all, while visits come in. Every visit is a visitor of
// its own, so that afterwards each can be asked how often it was counted.
func TestPatroni(t *testing.T) {
	f := bootHosts(t, 3)
	defer f.remove()
	made := f.ansible(t, filepath.Join(repoDir(), "e2e", "patroni.yml"), "-e", "patroni_network="+f.network.prefix.String())
	record("Patroni cluster of three, from bare hosts", 0, 0, made.Took, "")

	var hosts []string
	for _, h := range f.hosts {
		hosts = append(hosts, h.ip+":5432")
	}
	image := release(t)
	container := "footfall-e2e-" + pid + "-on-patroni"
	ip := f.network.addr(50)
	_, err := docker("run", "--detach", "--name", container, "--label", label+"="+pid, "--network", f.network.name, "--ip", ip,
		"--env", "DATABASE_URL=postgres://footfall:for-tests@"+strings.Join(hosts, ",")+"/footfall?target_session_attrs=read-write",
		"--env", "TRUSTED_PROXIES="+f.network.prefix.String(), image)
	require.NoError(t, err)
	defer docker("rm", "-f", container)
	eventually(t, 30*time.Second, "the service is ready", func() error {
		status, err := ask("http://"+ip+":8080/readyz", "", nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d", status)
		}
		return err
	})
	before, err := docker("inspect", "-f", "{{.State.StartedAt}} {{.RestartCount}}", container)
	require.NoError(t, err)

	v := &visits{url: "http://" + ip + ":8080/"}
	v.begin(16, 20*time.Millisecond)
	defer v.end()
	v.await(t, 2000, "visits before the fault")

	leader := patroniLeader(t, f.hosts)
	_, err = docker("kill", leader.container)
	require.NoError(t, err)
	killed := time.Now()
	progress("killed %s, the leader", leader.name)
	eventually(t, 30*time.Second, "visits are refused", func() error {
		if _, failed, _ := v.so(); failed == 0 {
			return fmt.Errorf("none so far")
		}
		return nil
	})
	counted, _, _ := v.so()
	eventually(t, 2*time.Minute, "visits are counted again", func() error {
		if now, _, _ := v.so(); now == counted {
			return fmt.Errorf("none since the leader was killed")
		}
		return nil
	})
	v.await(t, counted+2000, "visits after the fault")
	v.end()
	_, _, again := v.so()
	away := again.Sub(killed)

	// The dead leader returns as a replica and brings back nothing that the others lack.
	_, err = docker("start", leader.container)
	require.NoError(t, err)
	eventually(t, 2*time.Minute, "the old leader is a replica", func() error {
		for _, m := range patroniMembers(f.hosts) {
			if m.Name == leader.name && m.State == "streaming" && m.Role != "leader" {
				return nil
			}
		}
		return fmt.Errorf("members: %v", patroniMembers(f.hosts))
	})

	lost, doubled, unknown := v.recount(t)
	after, err := docker("inspect", "-f", "{{.State.StartedAt}} {{.RestartCount}}", container)
	require.NoError(t, err)
	assert.Equal(t, before, after, "the service was restarted")
	assert.Empty(t, v.broken, "answers that were neither the page nor a 503")
	assert.Zero(t, lost, "visits that were answered 200 and are not counted")
	assert.Zero(t, doubled, "visits that are counted twice")
	answered, failed, _ := v.so()
	_, err = docker("exec", container, "/footfall", "verify")
	assert.NoError(t, err)
	record("Patroni's leader killed under load", answered+failed, failed, away,
		"counting again after that; lost %d, doubled %d; of the 503s %d were counted once", lost, doubled, unknown)
}

// visits opens the page over and over, each time as another visitor.
type visits struct {
	url      string
	stop     chan struct{}
	stopped  sync.Once
	clients  sync.WaitGroup
	mu       sync.Mutex
	next     int
	answered []int     // visitors whose visit was answered 200
	failed   []int     // all others
	broken   []string  // of those, what was no 503
	again    time.Time // of the first 200 after the last failure
}

func (v *visits) begin(clients int, pause time.Duration) {
	v.stop = make(chan struct{})
	for range clients {
		v.clients.Go(func() {
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for {
				select {
				case <-v.stop:
					return
				case <-tick.C:
					v.one()
				}
			}
		})
	}
}

func (v *visits) one() {
	v.mu.Lock()
	visitor := v.next
	v.next++
	v.mu.Unlock()
	status, err := ask(v.url, visitorAddress(visitor), nil)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil || status != http.StatusOK {
		v.failed = append(v.failed, visitor)
		v.again = time.Time{}
		if status != http.StatusServiceUnavailable {
			v.broken = append(v.broken, fmt.Sprintf("%d %v", status, err))
		}
		return
	}
	v.answered = append(v.answered, visitor)
	if v.again.IsZero() {
		v.again = time.Now()
	}
}

func (v *visits) end() {
	v.stopped.Do(func() { close(v.stop) })
	v.clients.Wait()
}

// so returns how many visits were answered 200 and how many were not, so far, and when the first
// was answered after the last that was not.
func (v *visits) so() (answered, failed int, again time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.answered), len(v.failed), v.again
}

func (v *visits) await(t *testing.T, n int, what string) {
	t.Helper()
	eventually(t, time.Minute, what, func() error {
		if answered, _, _ := v.so(); answered < n {
			return fmt.Errorf("%d, want %d", answered, n)
		}
		return nil
	})
}

// recount lets each visitor come once more: the page then says 2 when the first visit was counted
// once. unknown is how many of the visits that were not answered 200 were counted all the same.
func (v *visits) recount(t *testing.T) (lost, doubled, unknown int) {
	t.Helper()
	type visitor struct {
		n        int
		answered bool
	}
	todo := make(chan visitor)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for who := range todo {
				var page string
				status, err := ask(v.url, visitorAddress(who.n), &page)
				n := pageNumber(page)
				mu.Lock()
				switch {
				case err != nil || status != http.StatusOK || n < 1:
					t.Errorf("visitor %d: status %d, number %d, %v", who.n, status, n, err)
				case n > 2:
					doubled++
				case n == 1 && who.answered:
					lost++
				case n == 2 && !who.answered:
					unknown++
				}
				mu.Unlock()
			}
		})
	}
	for _, n := range v.answered {
		todo <- visitor{n, true}
	}
	for _, n := range v.failed {
		todo <- visitor{n, false}
	}
	close(todo)
	wg.Wait()
	return lost, doubled, unknown
}

// visitorAddress is the nth address of the range for documentation (RFC 3849), each in a /64 of
// its own.
func visitorAddress(n int) string {
	return fmt.Sprintf("2001:db8:%x:%x::1", n>>16, n&0xffff)
}

var (
	askClient = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	tag       = regexp.MustCompile(`<[^>]*>`)
	number    = regexp.MustCompile(`visited this page\s+([0-9,]+)\s+times?`)
)

// ask gets url for a client behind a proxy, if from is not empty, and keeps the body in page.
func ask(url, from string, page *string) (status int, err error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	if from != "" {
		req.Header.Set("X-Forwarded-For", from)
	}
	resp, err := askClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if page != nil {
		*page = string(body)
	}
	return resp.StatusCode, err
}

// pageNumber is the N of "You have visited this page N times"; 0: it is not there.
func pageNumber(page string) int {
	m := number.FindStringSubmatch(tag.ReplaceAllString(page, ""))
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.ReplaceAll(m[1], ",", ""))
	return n
}

type patroniMember struct{ Name, Role, State string }

// patroniMembers is the cluster as the first member that answers sees it.
func patroniMembers(hosts []*host) []patroniMember {
	for _, h := range hosts {
		var cluster struct{ Members []patroniMember }
		var body string
		if _, err := ask("http://"+h.ip+":8008/cluster", "", &body); err == nil && json.Unmarshal([]byte(body), &cluster) == nil {
			return cluster.Members
		}
	}
	return nil
}

func patroniLeader(t *testing.T, hosts []*host) *host {
	t.Helper()
	for _, m := range patroniMembers(hosts) {
		for _, h := range hosts {
			if m.Role == "leader" && m.Name == h.name {
				return h
			}
		}
	}
	require.Fail(t, "the cluster has no leader")
	return nil
}
