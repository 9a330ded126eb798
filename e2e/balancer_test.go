//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// balancerID is the access key of an operator who has balancer-policy.json beside zones-policy.json and provision-policy.json.
const balancerID = "AKIAFOOTFALLE2EBALANCER0"

// TestBalancer runs three hosts behind a balancer with the managed database, kills each of them, the writer with one of
// them, deploys, removes and adds hosts while visitors come, and takes everything down.
func TestBalancer(t *testing.T) {
	c, settings := startZones(t)
	c.startBalancer(t)
	s := &service{fleet: &fleet{network: c.network}, version: repoVersion(t), front: "http://" + c.balancer.ip}
	settings = append(settings, "-e", "database=rds", "-e", "monitoring=true")
	try := func(t *testing.T, playbook string, args ...string) play {
		t.Helper()
		return c.ansibleAs(t, balancerID, playbook, slices.Concat(settings, args)...)
	}
	run := func(t *testing.T, playbook string, args ...string) play {
		t.Helper()
		p := try(t, playbook, args...)
		p.require(t)
		s.hosts = nil
		all := c.instances(t)
		for i := range 9 {
			if _, ok := all[fmt.Sprintf("footfall-%d", i+1)]; ok {
				s.hosts = append(s.hosts, c.host(t, fmt.Sprintf("footfall-%d", i+1)))
			}
		}
		return p
	}
	// meanwhile lets visitors come, and compares their answers with the database. Some may be answered with an error, as many as failing.
	meanwhile := func(t *testing.T, what string, failing int, do func()) {
		t.Helper()
		before := s.totals(t)
		l := startLoad(t, s.url("/"), 8, 50*time.Millisecond)
		begin := time.Now()
		do()
		took := time.Since(begin)
		r := l.finish()
		assert.LessOrEqual(t, r.failedGETs(), failing, "%s", r)
		s.balance(t, fmt.Sprintf("%s: pages failed %d of %d, at most %.1f s without one", what, r.failedGETs(), r.Counted+r.failedGETs(), r.Away.Seconds()), before, r, 0, took)
	}
	// kill is a host's sudden end; it comes back as it was.
	kill := func(t *testing.T, h *host) {
		t.Helper()
		_, err := docker("kill", h.container)
		require.NoError(t, err)
		c.balancer.await(t, h.ip, false)
	}
	comeBack := func(t *testing.T, h *host) {
		t.Helper()
		_, err := docker("start", h.container)
		require.NoError(t, err)
		c.mu.Lock()
		c.led = "" // the engine wrote its /etc/hosts again
		c.mu.Unlock()
		c.balancer.await(t, h.ip, true)
	}

	ok := t.Run("settings that will not do", func(t *testing.T) {
		p := try(t, "site.yml", "-e", "database=", "-e", "balancer=true")
		assert.Error(t, p.Err)
		assert.Contains(t, strings.Join(strings.Fields(p.Output), " "), "balancer needs hosts in EC2 and a database elsewhere; set database to rds, or database_url")
		assert.Empty(t, c.instances(t))
	})
	ok = ok && t.Run("from nothing", func(t *testing.T) {
		p := run(t, "site.yml", "-e", "balancer=true", "-e", "node_count=3")
		record("site.yml: an empty account to three hosts behind a balancer", 0, 0, p.Took, "changed=%d", p.Changed)
		require.Len(t, s.hosts, 3)
		for name, i := range c.instances(t) {
			assert.Len(t, i.Groups, 3, "%s serves visitors", name)
		}
		assert.Empty(t, c.address(t))
		assert.Empty(t, c.volumes(t, "footfall-data"))
		for _, h := range s.hosts {
			c.balancer.await(t, h.ip, true)
			assert.NotContains(t, h.must(t, "cat /etc/nginx/nginx.conf"), "upstream footfall", "each host asks its own release only")
		}
		s.visit(t)
		assert.Contains(t, p.Output, "The page: http://footfall-1."+region+".elb.amazonaws.com/")
	})
	require.True(t, ok, "every step needs this one")
	t.Run("who is counted", func(t *testing.T) {
		first := s.visit(t)
		assert.Contains(t, first, "You have visited this page")
		before := s.totals(t)
		for i := range 6 { // whichever host it comes to
			s.visit(t, "X-Forwarded-For", fmt.Sprintf("203.0.113.%d", i), "Forwarded", "for=203.0.113.77")
		}
		assert.Equal(t, before.Visitors, s.totals(t).Visitors, "a forged address makes no visitor")
		_, err := c.inController(t, "", "curl --silent --show-error --fail "+s.url("/"))
		require.NoError(t, err)
		assert.Equal(t, totals{before.Visits + 7, before.Visitors + 1}, s.totals(t), "another address is another visitor")
	})
	t.Run("each host killed in turn", func(t *testing.T) {
		all := s.hosts
		for i, h := range all {
			s.hosts = slices.Concat(all[i+1:], all[:i+1]) // the first one is asked for the recount
			func() {
				defer comeBack(t, h)
				meanwhile(t, h.name+" killed behind the balancer", 40, func() { kill(t, h) })
			}()
		}
		s.hosts = all
	})
	t.Run("the zone of the first host and the writer killed", func(t *testing.T) {
		h := s.hosts[0]
		defer func() { s.hosts = append([]*host{h}, s.hosts...) }()
		defer comeBack(t, h)
		s.hosts = s.hosts[1:]
		meanwhile(t, "a zone killed: footfall-1 and the database's writer, its name moved at once", 200, func() {
			_, err := docker("kill", h.container)
			require.NoError(t, err)
			c.pair.fail(t)
			c.names.point(c.databases(t)[0].Address, c.pair.addr(c.network, 200+c.pair.writer))
			c.balancer.await(t, h.ip, false)
			s.awaitPage(t, time.Minute, "the page counts with the standby")
		})
	})
	t.Run("again, and not told", func(t *testing.T) {
		p := run(t, "site.yml")
		assert.Zero(t, p.Changed, "%v", p.Tasks)
	})
	t.Run("status", func(t *testing.T) {
		for _, h := range s.hosts[:2] {
			eventually(t, 2*time.Minute, h.name+" asks how the database is", func() error {
				_, err := h.sh("systemctl start footfall-rds.service || { journalctl -u footfall-rds -n 20 -o cat >&2; exit 1; }")
				return err
			})
		}
		out, err := c.inController(t, balancerID, "../delivery/fleet.py status")
		require.NoError(t, err, out)
		assert.Regexp(t, "any host may end at any time: yes$", out)
	})
	const upgrade = "99.9.0"
	var archived []string // what brings it
	t.Run("a deployment", func(t *testing.T) {
		variant(t, upgrade, func(string) {})
		archived = []string{"-e", "version=" + upgrade, "-e", "app_image_archive=" + archive(t, appImage()+":"+upgrade)}
		meanwhile(t, "deploy.yml behind the balancer", 0, func() { run(t, "deploy.yml", archived...) })
		assert.Equal(t, []string{upgrade, upgrade, upgrade}, s.running(t))
		meanwhile(t, "deploy.yml back, footfall-3 killed meanwhile", 40, func() {
			ended := make(chan play, 1)
			go func() { ended <- try(t, "deploy.yml", "-e", "version="+s.version, "-e", "back=true") }()
			for _, h := range s.hosts {
				eventually(t, 5*time.Minute, h.name+" has the lock", func() error {
					_, err := h.sh("! flock --nonblock /run/footfall.lock true")
					return err
				})
			}
			eventually(t, 5*time.Minute, "the release is about to be switched", func() error {
				require.Empty(t, ended, "the run ended before")
				_, err := s.hosts[2].sh("docker ps --format '{{.Image}}' | grep :" + s.version)
				return err
			})
			kill(t, s.hosts[2])
			assert.Error(t, (<-ended).Err)
			for _, h := range s.hosts[:2] {
				assert.Contains(t, h.must(t, "curl -sf --unix-socket /var/lib/footfall/live.sock http://footfall/version"), upgrade, "all hosts or none")
			}
		})
		comeBack(t, s.hosts[2]) // with either release: it may have switched
	})
	t.Run("two hosts", func(t *testing.T) {
		meanwhile(t, "from three hosts to two behind the balancer", 0, func() {
			run(t, "site.yml", "-e", "node_count=2", "-e", "version="+upgrade)
		})
		assert.Len(t, s.hosts, 2)
	})
	t.Run("the first host terminated, and three again", func(t *testing.T) {
		first := c.instances(t)["footfall-1"]
		meanwhile(t, "footfall-1 terminated and made again, and one host more", 40, func() {
			require.NoError(t, c.call("TerminateInstances", url.Values{"InstanceId.1": {first.ID}}, nil), "it is not protected")
			deployed := try(t, "deploy.yml", "-e", "version="+upgrade)
			deployed.require(t)
			out, err := c.inController(t, balancerID, "../delivery/fleet.py status; ../delivery/fleet.py history")
			require.NoError(t, err, out)
			assert.Contains(t, out, "any host may end at any time: no, there is one host")
			assert.Contains(t, out, s.version+" -> "+upgrade)
			eventually(t, 2*time.Minute, "footfall-2 watches too", func() error {
				_, err := s.hosts[1].sh(`curl -sf http://127.0.0.1:9090/api/v1/alerts | grep -o '{[^{}]*FootfallInstanceDown[^{}]*}' | grep '"instance":"footfall-1"'`)
				return err
			})
			run(t, "site.yml", append(archived, "-e", "node_count=3")...)
		})
		require.Len(t, s.hosts, 3)
		for _, h := range s.hosts {
			c.balancer.await(t, h.ip, true)
		}
		assert.NotEqual(t, first.ID, c.instances(t)["footfall-1"].ID)
		out, err := c.inController(t, balancerID, "../delivery/fleet.py history")
		require.NoError(t, err, out)
		assert.Contains(t, out, s.version+" -> "+upgrade, "what is older than the new first host")
	})
	t.Run("another machine for the first host", func(t *testing.T) {
		first := c.instances(t)["footfall-1"]
		meanwhile(t, "replace.yml of footfall-1 behind the balancer", 0, func() {
			run(t, "replace.yml", append(archived, "-e", "host=footfall-1")...)
		})
		require.Len(t, s.hosts, 3)
		assert.NotEqual(t, first.ID, c.instances(t)["footfall-1"].ID)
		for _, h := range s.hosts {
			c.balancer.await(t, h.ip, true)
		}
		assert.Equal(t, []string{upgrade, upgrade, upgrade}, s.running(t))
	})
	browse := func(t *testing.T) {
		t.Helper()
		page, err := c.inController(t, "", "curl --silent --show-error --fail --location http://"+cloudDomain+"/")
		require.NoError(t, err)
		assert.Contains(t, page, "You have visited this page")
	}
	named := []string{"-e", "domain=" + cloudDomain, "-e", "dns_zone=" + cloudZone, "-e", "acme_email=ops@example.org", "-e", "version=" + upgrade,
		"-e", "acme_server=https://" + c.acme.ip + ":14000/dir", "-e", "acme_ca_bundle=/etc/ssl/acme-api.pem"}
	t.Run("a name, and a certificate on every host", func(t *testing.T) {
		p := run(t, "site.yml", named...)
		assert.NotContains(t, p.Output, "no HTTPS yet")
		assert.Equal(t, len(s.hosts), c.acme.orders(t))
		for _, h := range s.hosts {
			c.balancer.await(t, h.ip+":443", true)
		}
		for range 6 { // whichever host it comes to
			browse(t)
		}
		p = run(t, "site.yml", named...)
		assert.Zero(t, p.Changed, "%v", p.Tasks)
	})
	t.Run("back to one edge, and behind the balancer again", func(t *testing.T) {
		leads := func(to string) {
			t.Helper()
			records, err := c.records()
			require.NoError(t, err)
			assert.Equal(t, to, records[cloudDomain])
			browse(t)
		}
		run(t, "site.yml", append(named, "-e", "balancer=false")...)
		groups, err := c.targetGroups()
		require.NoError(t, err)
		assert.Empty(t, groups)
		require.NotEmpty(t, c.address(t))
		leads(c.address(t))
		const watch = "footfall-rds.timer footfall-certificate.timer prometheus prometheus-alertmanager prometheus-blackbox-exporter"
		_, err = s.hosts[1].sh("! systemctl is-enabled " + watch + " && ! systemctl is-active " + watch)
		assert.NoError(t, err, "the first host's work is its own again")
		p := run(t, "site.yml", named...)
		assert.Zero(t, p.Changed, "%v", p.Tasks)

		run(t, "site.yml", append(named, "-e", "balancer=true")...)
		for _, h := range s.hosts {
			c.balancer.await(t, h.ip+":443", true)
		}
		leads(c.balancer.ip)
		for _, h := range s.hosts[:2] {
			h.must(t, "for unit in "+watch+"; do systemctl is-active $unit || exit 1; done")
		}
	})
	t.Run("destroyed", func(t *testing.T) {
		run(t, "destroy.yml", slices.Concat(named, []string{"-e", "project=footfall", "-e", "balancer=true", "-e", "destroy_data=true"})...)
		groups, err := c.targetGroups()
		require.NoError(t, err)
		assert.Empty(t, groups)
		records, err := c.records()
		require.NoError(t, err)
		assert.NotContains(t, records, cloudDomain)
		assert.Empty(t, c.instances(t))
	})
	t.Run("the least rights", func(t *testing.T) {
		base := slices.Concat(readPolicy(t, "files/provision-policy.json"), readPolicy(t, "files/zones-policy.json"))
		readPolicy(t, "files/balancer-policy.json").isLeastBeside(t, base, needed(t, balancerID))
	})
}

// A balancer is the way of packets that the emulator's balancer lacks: a router between the clients' network and the hosts'
// that sends each new connection to one of the healthy targets, by translation of its destination, so that a host sees the client's
// address. Health is judged as the target groups say. As with Amazon's, a target that is deregistered gets no new connection,
// and all get some if none is healthy. Unlike Amazon's, which ends them, connections to a target that fails are left to the client.
type balancer struct {
	container, ip string // what clients reach
	inside        string // in the hosts' network
	clients       network

	mu     sync.Mutex
	health map[string]int // by address and port: checks in a row with this result, negative for failed
	good   map[string]bool
	served map[string]bool // who gets new connections
}

func (c *cloud) startBalancer(t *testing.T) {
	t.Helper()
	b := &balancer{container: "footfall-e2e-" + pid + "-balancer", inside: "172.31.255.240",
		health: map[string]int{}, good: map[string]bool{}}
	// Docker's translation of addresses that leave a network would be a client's here.
	b.clients = newNetwork(t, "", "", "--opt", "com.docker.network.bridge.enable_ip_masquerade=false")
	b.ip = b.clients.addr(5)
	_, err := docker("run", "--detach", "--name", b.container, "--label", label+"="+pid, "--network", c.network.name, "--ip", b.inside,
		"--cap-add", "NET_ADMIN", "--sysctl", "net.ipv4.ip_forward=1", "--entrypoint", "sleep", hostImage, "infinity")
	require.NoError(t, err)
	_, err = docker("network", "connect", "--ip", b.ip, b.clients.name, b.container)
	require.NoError(t, err)
	_, err = docker("network", "connect", b.clients.name, c.acme.container)
	require.NoError(t, err)
	_, err = docker("exec", c.acme.container, "sh", "-c", "ip route del default; true")
	require.NoError(t, err)
	c.mu.Lock()
	c.balancer = b
	c.mu.Unlock()

	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		rules, checked := "", map[string]time.Time{}
		for ctx.Err() == nil {
			groups, err := c.targetGroups()
			if err == nil {
				b.check(groups, checked)
				rules, err = b.route(groups, rules)
			}
			if err != nil && ctx.Err() == nil {
				t.Errorf("balance: %v", err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
		docker("rm", "-f", "-v", b.container)
		docker("network", "disconnect", "-f", b.clients.name, c.acme.container)
		(&fleet{network: b.clients}).remove()
	})
}

// A targetGroup is what the API says of one, with the addresses of the targets that are not draining.
type targetGroup struct {
	ARN       string `xml:"TargetGroupArn"`
	Port      string `xml:"Port"`
	Check     string `xml:"HealthCheckPort"`
	Path      string `xml:"HealthCheckPath"`
	Interval  int    `xml:"HealthCheckIntervalSeconds"`
	Timeout   int    `xml:"HealthCheckTimeoutSeconds"`
	Healthy   int    `xml:"HealthyThresholdCount"`
	Unhealthy int    `xml:"UnhealthyThresholdCount"`
	targets   []string
}

func (c *cloud) elb(action string, params url.Values, answer any) error {
	return c.query("elasticloadbalancing", "2015-12-01", action, params, answer)
}

func (c *cloud) targetGroups() ([]targetGroup, error) {
	var answer struct {
		Groups []targetGroup `xml:"DescribeTargetGroupsResult>TargetGroups>member"`
	}
	if err := c.elb("DescribeTargetGroups", nil, &answer); err != nil {
		return nil, err
	}
	instances, err := c.describe()
	if err != nil {
		return nil, err
	}
	for i, g := range answer.Groups {
		var health struct {
			Targets []struct {
				ID    string `xml:"Target>Id"`
				State string `xml:"TargetHealth>State"`
			} `xml:"DescribeTargetHealthResult>TargetHealthDescriptions>member"`
		}
		if err := c.elb("DescribeTargetHealth", url.Values{"TargetGroupArn": {g.ARN}}, &health); err != nil {
			if strings.Contains(err.Error(), "TargetGroupNotFound") {
				continue // it went between the two questions
			}
			return nil, err
		}
		for _, target := range health.Targets {
			at := slices.IndexFunc(instances, func(i instance) bool { return i.ID == target.ID && i.State == "running" })
			if at >= 0 && target.State == "healthy" { // the emulator's word for registered
				answer.Groups[i].targets = append(answer.Groups[i].targets, instances[at].IP)
			}
		}
	}
	return answer.Groups, nil
}

// check asks each target that is due.
func (b *balancer) check(groups []targetGroup, checked map[string]time.Time) {
	var asking sync.WaitGroup
	for _, g := range groups {
		for _, ip := range g.targets {
			name := ip + ":" + g.Port
			if time.Since(checked[name]) < time.Duration(g.Interval)*time.Second {
				continue
			}
			checked[name] = time.Now()
			asking.Go(func() {
				client := &http.Client{Timeout: time.Duration(g.Timeout) * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
				resp, err := client.Get("http://" + ip + ":" + g.Check + g.Path)
				if err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				b.mu.Lock()
				defer b.mu.Unlock()
				switch ok := err == nil && resp.StatusCode == http.StatusOK; {
				case ok:
					b.health[name] = max(b.health[name], 0) + 1
				default:
					b.health[name] = min(b.health[name], 0) - 1
				}
				if n := b.health[name]; n >= g.Healthy {
					b.good[name] = true
				} else if -n >= g.Unhealthy {
					b.good[name] = false
				}
			})
		}
	}
	asking.Wait()
}

// route sends new connections to the healthy targets, or if there is none to all, and returns the rules for it.
func (b *balancer) route(groups []targetGroup, before string) (string, error) {
	b.mu.Lock()
	var rules strings.Builder
	served := map[string]bool{}
	rules.WriteString("*nat\n:PREROUTING ACCEPT\n:POSTROUTING ACCEPT\n")
	for _, g := range groups {
		to := slices.DeleteFunc(slices.Clone(g.targets), func(ip string) bool { return !b.good[ip+":"+g.Port] })
		if len(to) == 0 {
			to = g.targets
		}
		slices.Sort(to)
		for i, ip := range to {
			served[ip+":"+g.Port] = true
			fmt.Fprintf(&rules, "-A PREROUTING -d %s -p tcp --dport %s -m statistic --mode random --probability %.4f -j DNAT --to %s\n", b.ip, g.Port, 1/float64(len(to)-i), ip)
		}
	}
	// A host that asks for the page comes from its public address, of which no host here knows.
	rules.WriteString("-A POSTROUTING -s 172.31.0.0/16 -j MASQUERADE\nCOMMIT\n")
	b.mu.Unlock()
	if rules.String() == before {
		return before, nil
	}
	if _, err := shIn([]byte(rules.String()), "docker", "exec", "-i", b.container, "iptables-restore"); err != nil {
		return "", err
	}
	b.mu.Lock()
	b.served = served
	b.mu.Unlock()
	return rules.String(), nil
}

// await waits until a target gets new connections, or none; a target without a port is the one of port 80.
func (b *balancer) await(t *testing.T, target string, served bool) {
	t.Helper()
	if !strings.Contains(target, ":") {
		target += ":80"
	}
	eventually(t, 2*time.Minute, fmt.Sprintf("%s is healthy: %t", target, served), func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.served[target] != served {
			return fmt.Errorf("checks in a row: %d", b.health[target])
		}
		return nil
	})
}

// leading is what makes a host's packets to clients go back through the balancer, if there is one, at each of its boots.
func (c *cloud) leading() string {
	if c.balancer == nil {
		return ""
	}
	return `cat > /usr/local/sbin/e2e-lead <<'SCRIPT'
#!/bin/sh
rule='OUTPUT -d 169.254.169.254 -p tcp --dport 80 -j DNAT --to ` + c.metadata + `'
iptables -t nat -C $rule 2>/dev/null || iptables -t nat -A $rule
ip route replace ` + c.balancer.clients.prefix.Masked().String() + " via " + c.balancer.inside + "\n" + c.resolving() + `SCRIPT
cat > /etc/systemd/system/e2e-lead.service <<'UNIT'
[Unit]
DefaultDependencies=no
Before=docker.service nginx.service
[Service]
Type=oneshot
ExecStart=/bin/sh /usr/local/sbin/e2e-lead
UNIT
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -sf ../e2e-lead.service /etc/systemd/system/multi-user.target.wants/
sh /usr/local/sbin/e2e-lead
`
}

// elbNeeds is what IAM asks for where a request to Elastic Load Balancing is made. From Amazon's Service Authorization Reference,
// the page of Elastic Load Balancing V2: none of the questions has a resource, and in an account that never had a balancer the
// role of the service is made.
func elbNeeds(form url.Values) []need {
	action := form.Get("Action")
	own := need{action: "elasticloadbalancing:" + action}
	prefix := "arn:aws:elasticloadbalancing:" + region + ":" + account + ":"
	for _, p := range []string{"TargetGroupArn", "LoadBalancerArn", "ListenerArn", "ResourceArns.member.1"} {
		if arn := form.Get(p); arn != "" {
			arn = strings.Replace(arn, "loadbalancer/app/", "loadbalancer/net/", 1) // moto names each kind so
			own.targets = append(own.targets, target{arn: arn})
		}
	}
	all := []need{}
	switch {
	case strings.HasPrefix(action, "Describe"):
		own.targets = []target{{arn: "*"}}
	case action == "CreateTargetGroup":
		own.targets = []target{{arn: prefix + "targetgroup/" + form.Get("Name") + "/new"}}
	case action == "CreateLoadBalancer":
		own.targets = []target{{arn: prefix + "loadbalancer/net/" + form.Get("Name") + "/new"}}
		all = append(all, need{"iam:CreateServiceLinkedRole", []target{{arn: "arn:aws:iam::" + account +
			":role/aws-service-role/elasticloadbalancing.amazonaws.com/AWSServiceRoleForElasticLoadBalancing"}}})
	}
	if form.Has("Tags.member.1.Key") && action != "AddTags" {
		all = append(all, need{"elasticloadbalancing:AddTags", own.targets})
	}
	return append(all, own)
}
