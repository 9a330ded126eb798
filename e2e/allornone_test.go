//go:build e2e

package e2e

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A deployFault is what goes wrong when a host is about to take a step of a deployment, or has just taken it.
type deployFault struct {
	name     string
	host     int    // index of the host
	step     string // of footfall-release
	before   string // script that runs on the host before the step
	after    string // script that runs on the host after the step
	fix      string // script that puts the host right
	version  string // to deploy instead
	kill     bool   // kill -9 the controller once the host holds still (see still)
	second   bool   // a second deployment is tried once the host holds still
	harmless bool   // the deployment succeeds
	want     string // in the output of the run
	args     []string
}

const (
	cutSSH = "iptables -I INPUT -p tcp --dport 22 -j DROP; iptables -I OUTPUT -p tcp --sport 22 -j DROP"
	fixSSH = "iptables -D INPUT -p tcp --dport 22 -j DROP; iptables -D OUTPUT -p tcp --sport 22 -j DROP"
	// still makes the first call wait, until the file is removed; a later deployment's calls pass.
	still = "if mkdir /run/e2e-still 2>/dev/null; then touch /run/e2e-held; while [ -e /run/e2e-held ]; do sleep 0.1; done; fi"
	// fullState puts the directory of the deployment on a file system without a free block; the sockets stay where they are,
	// and the disk below stays in reach. Before the switch there are fewer files to copy.
	fullState = `mkdir -p /run/e2e-disk /run/e2e-state && mount --bind --make-private /var/lib/footfall /run/e2e-disk && mount -t tmpfs -o size=64k,mode=755 tmpfs /run/e2e-state
cd /var/lib/footfall; cp -a live.sock run version deployments.jsonl back.sock version.next /run/e2e-state/ 2>/dev/null
for slot in blue green; do mkdir /run/e2e-state/$slot && mount --bind $slot /run/e2e-state/$slot; done
mount --rbind /run/e2e-state /var/lib/footfall; dd if=/dev/zero of=/var/lib/footfall/fill bs=4k 2>/dev/null; true`
	// fixState takes the file system away, all of it in one moment: visitors come meanwhile.
	fixState = "umount -l /var/lib/footfall; umount -R /run/e2e-state; umount /run/e2e-disk"
	// fixConfirmed first takes over what confirm and finish have renamed and removed.
	fixConfirmed = "cd /run/e2e-state && cp -a version deployments.jsonl /run/e2e-disk/ && cp -a live.sock /run/e2e-disk/next.sock" +
		" && cd /run/e2e-disk && mv -T next.sock live.sock && rm -f version.next back.sock && cd / && " + fixState
	// fullDocker leaves Docker no block for what it unpacks, fullContainers none for a new container.
	fullDocker     = "mount -t tmpfs -o size=64k tmpfs /var/lib/docker/tmp; dd if=/dev/zero of=/var/lib/docker/tmp/fill bs=4k 2>/dev/null; true"
	fixDocker      = "umount -l /var/lib/docker/tmp"
	fullContainers = "mount -t tmpfs -o size=4k tmpfs /var/lib/docker/containers; dd if=/dev/zero of=/var/lib/docker/containers/fill bs=4k 2>/dev/null; true"
	fixContainers  = "umount -l /var/lib/docker/containers"
)

// testDeployFaults breaks a deployment at each step while clients ask on. Afterwards all hosts serve one version, no
// request has failed, and the next deployment succeeds at once.
func testDeployFaults(t *testing.T, s *service) {
	const other, unmigratable = "99.3.0", "99.4.0"
	variant(t, other, func(string) {})
	variant(t, unmigratable, func(dir string) {
		files, err := filepath.Glob(filepath.Join(dir, "sql", "*.sql"))
		require.NoError(t, err)
		name := fmt.Sprintf("%04d_broken.sql", len(files)+1)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "sql", name), []byte("SELECT 1 / 0;\n"), 0o644))
	})
	unreachable := "footfall-2: Task failed: " // and that the connection fails, or times out
	faults := []deployFault{
		{name: "image is nowhere", args: []string{"-e", "app_image=127.0.0.1:9/footfall", "-e", "app_image_archive="}, want: "footfall-release: docker pull --quiet 127.0.0.1:9/footfall:"},
		{name: "migration fails", version: unmigratable, want: "division by zero"},
		{name: "service is not ready on the second host", host: 1, step: "start", args: []string{"-e", "app_ready_timeout=5"}, want: "is not ready after 5 s",
			before: "cp /etc/footfall/release /run/e2e-settings; echo 'service+=(--env LISTEN_ADDR=unix:/run/footfall/other.sock)' >> /etc/footfall/release", fix: "cp /run/e2e-settings /etc/footfall/release"},
		{name: "disk of Docker is full at prepare", host: 1, step: "prepare", before: fullDocker, fix: fixDocker, want: "no space left on device"},
		{name: "disk of Docker is full at start", host: 1, step: "start", before: fullContainers, fix: fixContainers, want: "no space left on device"},
		{name: "disk is full at switch", host: 1, step: "switch", before: fullState, fix: fixState, want: "No space left on device"},
		{name: "disk is full at confirm", host: 1, step: "confirm", before: fullState, fix: fixConfirmed, harmless: true},
	}
	for _, step := range []string{"prepare", "migrate", "start", "switch", "confirm"} {
		faults = append(faults, deployFault{name: "second deployment at " + step, step: step, before: still, second: true, harmless: true})
	}
	for _, step := range []string{"prepare", "start", "switch", "confirm"} {
		faults = append(faults, deployFault{name: "SSH of the second host cut before " + step, host: 1, step: step, before: cutSSH + "; exit 1", fix: fixSSH, want: unreachable})
	}
	faults = append(faults,
		deployFault{name: "SSH of the second host cut after switch", host: 1, step: "switch", after: cutSSH, fix: fixSSH, want: unreachable},
		deployFault{name: "SSH of the first host cut before migrate", step: "migrate", before: cutSSH + "; exit 1", fix: fixSSH, want: "footfall-1: Task failed: "},
		deployFault{name: "SSH of the first host cut after switch", step: "switch", after: cutSSH, fix: fixSSH, want: "footfall-1: Task failed: "})
	for _, step := range []string{"prepare", "migrate", "start", "switch"} {
		faults = append(faults, deployFault{name: "controller killed before " + step, step: step, before: still, kill: true})
	}
	faults = append(faults, deployFault{name: "controller killed after switch", step: "switch", after: still, kill: true},
		deployFault{name: "controller killed after confirm", step: "confirm", after: still, kill: true},
		deployFault{name: "controller killed before finish", step: "finish", before: still, kill: true})

	l := startLoad(t, s.url("/"), 8, 40*time.Millisecond)
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			to := other
			if s.running(t)[0] == other {
				to = s.version
			}
			sent, begin := l.sent(), time.Now()
			s.breakDeployment(t, f, to)
			one := s.awaitOneVersion(t)
			took := time.Since(begin)
			if f.harmless {
				assert.Equal(t, to, one)
			}
			p := s.deploy(t, to)
			p.require(t)
			assert.Equal(t, slices.Repeat([]string{to}, len(s.hosts)), s.running(t))
			record("deployment, "+f.name, l.sent()-sent, 0, took, "then all hosts serve %s; the next deployment takes %.0f s", one, p.Took.Seconds())
		})
	}
	r := l.finish()
	record("all faults of a deployment", r.Requests, r.Failed, r.Took, "")
	assert.Zero(t, r.Failed, "%s", r)
	s.deploy(t, s.version).require(t)
}

// breakDeployment deploys version with a fault, and puts the hosts right again.
func (s *service) breakDeployment(t *testing.T, f deployFault, version string) {
	t.Helper()
	version = cmp.Or(f.version, version)
	h := s.hosts[f.host]
	for _, h := range s.hosts { // so that each one has to get it
		h.sh("while systemctl --quiet is-active footfall-drain; do sleep 0.1; done; docker container prune --force; docker rmi " + appImage() + ":" + version)
	}
	if f.step != "" {
		h.must(t, fmt.Sprintf(`cp -p /usr/local/sbin/footfall-release /usr/local/sbin/footfall-release.real && cat > /usr/local/sbin/footfall-release <<'END'
#!/bin/bash
[ "$1" != %[1]s ] || { %[2]s
}
/usr/local/sbin/footfall-release.real "$@"
status=$?
[ "$1" != %[1]s ] || { %[3]s
}
exit $status
END
chmod 755 /usr/local/sbin/footfall-release`, f.step, cmp.Or(f.before, "true"), cmp.Or(f.after, "true")))
		defer func() {
			if f.fix != "" {
				h.must(t, f.fix)
			}
			h.must(t, "cp -p /usr/local/sbin/footfall-release.real /run/e2e-release && mv /run/e2e-release /usr/local/sbin/footfall-release; rm -rf /run/e2e-still /run/e2e-held")
		}()
	}
	if !f.kill && !f.second {
		p := s.deploy(t, version, f.args...)
		if f.harmless {
			p.require(t)
			return
		}
		assert.Error(t, p.Err)
		assert.True(t, strings.Contains(strings.Join(strings.Fields(p.Output), " "), f.want), // Ansible breaks lines
			"%s does not say %q", p.Log, f.want)
		return
	}
	ended := make(chan play)
	go func() { ended <- s.deploy(t, version) }()
	eventually(t, time.Minute, "the step", func() error {
		_, err := h.sh("test -e /run/e2e-held")
		return err
	})
	if f.second {
		p := s.deploy(t, s.running(t)[0])
		assert.Error(t, p.Err)
		assert.Contains(t, p.Output, "take the lock of the fleet: held by")
		h.must(t, "rm -f /run/e2e-held")
		p = <-ended
		p.require(t)
		return
	}
	killAnsible(t)
	p := <-ended
	assert.Error(t, p.Err)
	// What was sent before is carried out when its time has passed: after the next deployment has begun.
	defer h.must(t, "rm -f /run/e2e-held")
	if f.after == "" {
		next := s.deploy(t, version)
		next.require(t)
		h.must(t, "rm -f /run/e2e-held; while pgrep -f '[f]ootfall-release.real'; do sleep 0.1; done")
		assert.Equal(t, slices.Repeat([]string{version}, len(s.hosts)), s.running(t), "a step of the killed run was carried out")
	}
}

// killAnsible kills the controller's ansible-playbook, not its workers.
func killAnsible(t *testing.T) {
	t.Helper()
	out, err := docker("top", controllerName(), "-eo", "pid,ppid,args")
	require.NoError(t, err)
	parents := map[string]string{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); strings.Contains(line, "/usr/bin/ansible-playbook") {
			parents[f[0]] = f[1]
		}
	}
	for pid, parent := range parents {
		if _, worker := parents[parent]; !worker {
			_, err := sh("kill", "-9", pid)
			require.NoError(t, err)
			return
		}
	}
	t.Fatalf("no ansible-playbook runs:\n%s", out)
}

// awaitOneVersion waits until all hosts serve one version and says which: a switch that is not confirmed is undone
// after a minute.
func (s *service) awaitOneVersion(t *testing.T) string {
	t.Helper()
	eventually(t, 75*time.Second, "all hosts serve one version", func() error {
		if all := s.running(t); len(slices.Compact(slices.Clone(all))) > 1 {
			return fmt.Errorf("%v", all)
		}
		for _, h := range s.hosts {
			if _, err := h.sh("test ! -f /var/lib/footfall/version.next"); err != nil {
				return fmt.Errorf("the switch on %s is neither confirmed nor undone", h.name)
			}
		}
		return nil
	})
	return s.running(t)[0]
}

// testThreeHosts: the third host cannot be reached, is left out by mistake, or on purpose.
func testThreeHosts(t *testing.T, s *service) {
	const other = "99.3.0"
	variant(t, other, func(string) {})
	third := bootHost(t, s.network, "footfall-3", s.network.addr(13), nil)
	third.awaitBoot(t)
	two := s.hosts
	s.hosts = append(slices.Clone(two), third)
	s.writeInventory(t)
	s.play(t, "site.yml", "-e", "app_image_archive="+archive(t, appImage()+":"+s.version)).require(t)
	old := []string{s.version, s.version, s.version}
	assert.Equal(t, old, s.running(t))
	l := startLoad(t, s.url("/"), 8, 40*time.Millisecond)

	s.breakDeployment(t, deployFault{host: 2, step: "switch", before: cutSSH + "; exit 1", fix: fixSSH, want: "footfall-3: Task failed: "}, other)
	s.awaitOneVersion(t)
	assert.Equal(t, old, s.running(t))

	p := s.deploy(t, other, "--limit", "footfall-1,footfall-2,localhost")
	assert.Error(t, p.Err)
	assert.Contains(t, p.Output, "--limit is footfall-1,footfall-2,localhost; run without it")
	p = s.deploy(t, other, "-e", "without=footfall-1")
	assert.Error(t, p.Err, "without the first host")
	third.must(t, cutSSH)
	p = s.deploy(t, other)
	assert.Error(t, p.Err)
	assert.Equal(t, 1, p.Recap[third.name].Unreachable)
	assert.Equal(t, old, s.running(t))

	s.deploy(t, other, "-e", "without=footfall-3").require(t)
	assert.Equal(t, []string{other, other, s.version}, s.running(t))
	assert.Contains(t, s.edge().must(t, "tail -n 1 /var/lib/footfall/deployments.jsonl"), `"to": "`+other+`", "without": ["footfall-3"], "result": "deployed"`)
	third.must(t, fixSSH)
	s.play(t, "site.yml", "--tags", "app", "-e", "app_image_archive="+archive(t, appImage()+":"+other)).require(t)
	assert.Equal(t, []string{other, other, other}, s.running(t))
	s.deploy(t, s.version).require(t)
	r := l.finish()
	record("deployments on three hosts, one out of reach", r.Requests, r.Failed, r.Took, "")
	assert.Zero(t, r.Failed, "%s", r)

	s.hosts = two
	s.writeInventory(t)
	s.play(t, "site.yml").require(t) // all that named the third host forgets it
	docker("rm", "-f", "-v", third.container)
}
