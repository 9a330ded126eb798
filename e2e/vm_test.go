//go:build e2e

package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A machine is a virtual machine of 2 GB, as a t3.small has, with Debian 13's own kernel. QEMU computes its processor, since
// not every machine that runs the tests may use its own for that: it is some ten times slower. It runs in a container that passes
// SSH and HTTP on, so the machine is a host at the container's address.
type machine struct {
	*host
	network network
	dir     string // disks, seed and the monitor's socket
}

// The data volume's name in the machine: a disk of the NVMe kind, as a volume of EC2.
const (
	volumeDisk = "nvme,drive=data,serial=vol0123,id=volume,bus=late"
	volumeName = "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_vol0123"
)

// newMachine makes the disks of a machine that has never booted, and what cloud-init reads.
func newMachine(t *testing.T, n network) *machine {
	t.Helper()
	require.NoError(t, build("footfall-e2e-qemu", "qemu", dockerfile))
	require.NoError(t, build("footfall-e2e-vm", "vm", dockerfile))
	operator, err := key()
	require.NoError(t, err)
	authorized, err := os.ReadFile(operator + ".pub")
	require.NoError(t, err)
	hostKey, err := newKey("machine")
	require.NoError(t, err)
	private, err := os.ReadFile(hostKey)
	require.NoError(t, err)
	public, err := os.ReadFile(hostKey + ".pub")
	require.NoError(t, err)
	m := &machine{network: n, dir: filepath.Join(shared(), "vm"), host: &host{name: "footfall-1", ip: n.addr(11),
		container: "footfall-e2e-" + pid + "-vm", hostKey: strings.Join(strings.Fields(string(public))[:2], " ")}}
	require.NoError(t, os.Mkdir(m.dir, 0o755))
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o600))
	}
	write("meta-data", "instance-id: "+m.container+"\nlocal-hostname: footfall-1\n")
	write("user-data", "#cloud-config\nusers:\n- {name: admin, shell: /bin/bash, sudo: 'ALL=(ALL) NOPASSWD:ALL', ssh_authorized_keys: ['"+
		strings.TrimSpace(string(authorized))+"']}\nmanage_etc_hosts: true\nssh_deletekeys: true\nssh_keys:\n  ed25519_private: |\n    "+
		strings.ReplaceAll(strings.TrimSpace(string(private)), "\n", "\n    ")+"\n  ed25519_public: "+string(public))
	require.NoError(t, step("disk of a virtual machine", func() error {
		made, err := docker("create", "--label", label+"="+pid, "footfall-e2e-vm")
		if err == nil {
			_, err = docker("export", "--output", filepath.Join(m.dir, "root.tar"), made)
		}
		if err != nil {
			return err
		}
		// Of the engine's files one would tell systemd that it is in a container, one would name no resolver.
		_, err = docker("run", "--rm", "--label", label+"="+pid, "--volume", m.dir+":/vm", "--workdir", "/vm", "footfall-e2e-qemu", "sh", "-ec",
			`tar -xf root.tar --strip-components 1 boot/vmlinuz boot/initrd
			LC_ALL=C.UTF-8 mke2fs -q -t ext4 -L root -d root.tar root.img 10G
			printf 'rm /.dockerenv\nrm /etc/resolv.conf\n' | debugfs -w -f - root.img
			rm root.tar
			truncate -s 8G data.img && genisoimage -quiet -volid cidata -joliet -rock -output seed.iso user-data meta-data`)
		return err
	}))
	return m
}

// power turns the machine on, with more devices for it.
func (m *machine) power(t *testing.T, devices ...string) {
	t.Helper()
	docker("rm", "-f", m.container)
	args := []string{"run", "--detach", "--name", m.container, "--label", label + "=" + pid, "--network", m.network.name, "--ip", m.ip,
		"--volume", m.dir + ":/vm", "--workdir", "/vm", "footfall-e2e-qemu",
		"qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048",
		"-display", "none", "-serial", "file:console.log", "-monitor", "unix:monitor,server=on,wait=off",
		"-kernel", "vmlinuz", "-initrd", "initrd", "-append", "root=LABEL=root rw console=ttyS0 net.ifnames=0",
		"-drive", "file=root.img,if=virtio,format=raw,cache=unsafe", "-drive", "file=seed.iso,if=virtio,format=raw,readonly=on",
		"-drive", "file=data.img,if=none,id=data,format=raw,cache=unsafe", "-device", "pcie-root-port,id=late,chassis=1",
		"-netdev", "user,id=net,hostfwd=tcp::22-:22,hostfwd=tcp::80-:80", "-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci"}
	for _, d := range devices {
		args = append(args, "-device", d)
	}
	_, err := docker(args...)
	require.NoError(t, err)
}

// awaitBoot waits until systemd has started everything.
func (m *machine) awaitBoot(t *testing.T) {
	t.Helper()
	eventually(t, 15*time.Minute, "the virtual machine boots", func() error {
		state, err := m.sh("systemctl is-system-running --wait")
		if err != nil {
			return fmt.Errorf("state %q: %w", state, err)
		}
		return nil
	})
}

// sh is host.sh by SSH.
func (m *machine) sh(script string) (string, error) {
	operator, err := key()
	if err != nil {
		return "", err
	}
	return shIn([]byte(script), "ssh", "-i", operator, "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=10", "-o", "BatchMode=yes",
		"-o", "UserKnownHostsFile="+filepath.Join(shared(), m.network.name+".known_hosts"), "admin@"+m.ip, "sudo sh -s")
}

// must is sh for a script that has to succeed.
func (m *machine) must(t *testing.T, script string) string {
	t.Helper()
	out, err := m.sh(script)
	require.NoError(t, err)
	return out
}

// plug gives the running machine a device.
func (m *machine) plug(t *testing.T, device string) {
	t.Helper()
	monitor, err := net.Dial("unix", filepath.Join(m.dir, "monitor"))
	require.NoError(t, err)
	defer monitor.Close()
	_, err = fmt.Fprintf(monitor, "device_add %s\n", device)
	require.NoError(t, err)
	require.NoError(t, monitor.SetReadDeadline(time.Now().Add(10*time.Second)))
	var answer bytes.Buffer
	for strings.Count(answer.String(), "(qemu)") < 2 { // a prompt, the command and what it says, a prompt
		part := make([]byte, 1024)
		n, err := monitor.Read(part)
		require.NoError(t, err, answer.String())
		answer.Write(part[:n])
	}
	assert.NotContains(t, answer.String(), "Error")
}

// TestVM has what containers only pretend: a kernel of its own, with its modules, settings and memory, and disks that it finds.
func TestVM(t *testing.T) {
	image := release(t)
	n := newNetwork(t, "", "")
	m := newMachine(t, n)
	s := &service{fleet: &fleet{network: n, hosts: []*host{m.host}}, version: repoVersion(t)}
	s.writeInventory(t)
	s.settings = []string{"-e", "provision=false", "-e", "app_image=" + appImage(), "-e", "requests_per_second=100000", "-e", "data_device=" + volumeName}
	begin := time.Now()
	m.power(t, volumeDisk)
	m.awaitBoot(t)
	record("virtual machine: first boot", 0, 0, time.Since(begin), "")

	m.must(t, "systemd-run --quiet --unit=first-boot python3 -c '"+firstBoot+"'")
	p := s.play(t, "site.yml", "-e", "app_image_archive="+archive(t, image))
	p.require(t)
	m.must(t, "systemctl show -P Result first-boot | grep -x success")
	record("virtual machine: site.yml, a bare host to a counting page", 0, 0, p.Took, "apt's lock held for 70 s")
	passed := true
	for _, part := range []struct {
		name string
		test func(*testing.T, *service, *machine)
	}{
		{"reboot", testReboot},
		{"again", testAgain},
		{"kernel", testKernel},
		{"security updates", testSecurityUpdates},
		{"clock", testClock},
		{"memory", testMemory},
		{"memory limit", testMemoryLimit},
		{"late volume", testLateVolume},
	} {
		passed = passed && t.Run(part.name, func(t *testing.T) { part.test(t, s, m) })
	}
}

// firstBoot holds apt's lock, as its daily run does on a first boot, until site.yml has waited for it for longer than
// Ansible does by default.
const firstBoot = `import fcntl, subprocess, time
lock = open("/var/lib/dpkg/lock-frontend", "a")
fcntl.lockf(lock, fcntl.LOCK_EX)
open("/run/e2e-apt", "w")
while subprocess.run(["pgrep", "--older", "70", "--full", "[a]pt-get.*install"]).returncode:
    time.sleep(1)`

// testReboot reboots: everything is back by itself, with what was counted.
func testReboot(t *testing.T, s *service, m *machine) {
	s.visit(t)
	before := s.totals(t)
	boot := m.must(t, "cat /proc/sys/kernel/random/boot_id")
	begin := time.Now()
	m.sh("systemctl reboot") // the host may be gone before it answers
	eventually(t, 10*time.Minute, "the host reboots", func() error {
		now, err := m.sh("cat /proc/sys/kernel/random/boot_id")
		if err == nil && now == boot {
			err = fmt.Errorf("still up")
		}
		return err
	})
	s.awaitPage(t, 10*time.Minute, "the page counts")
	record("virtual machine: reboot", 0, 0, time.Since(begin), "until the first counted visit")
	assert.Equal(t, totals{before.Visits + 1, before.Visitors}, s.totals(t))
	m.awaitBoot(t)
	assert.Empty(t, m.must(t, "systemctl --failed --plain --no-legend"))
}

func testAgain(t *testing.T, s *service, m *machine) {
	p := s.play(t, "site.yml")
	p.require(t)
	assert.Zero(t, p.Changed, "%v", p.Tasks)
	record("virtual machine: site.yml after a reboot", 0, 0, p.Took, "changed=%d", p.Changed)
}

// testKernel finds every setting of the role base in force in a kernel that has read them at boot.
func testKernel(t *testing.T, s *service, m *machine) {
	var want []string
	for name, value := range kernelParameters(t) {
		want = append(want, name+" = "+value)
	}
	assert.ElementsMatch(t, want, strings.Split(m.must(t, "sysctl --pattern '^(kernel|net)[.]' --all 2>/dev/null | grep -xF '"+strings.Join(want, "\n")+"'"), "\n"))
	m.must(t, "lsmod | grep -w ^nf_conntrack && lsmod | grep -w ^tcp_bbr")
	m.must(t, "tc qdisc show dev eth0 | grep '^qdisc fq '")
	m.must(t, "ss --tcp --info state established sport 22 | grep -w bbr")
	assert.Equal(t, m.must(t, "realpath "+volumeName), m.must(t, "findmnt -no SOURCE /srv/footfall"))
	m.must(t, "grep -q '^"+volumeName+" ' /etc/fstab")
	m.must(t, "nginx -T 2>/dev/null | grep -F 'listen [::]:80'") // this kernel has IPv6
}

// testSecurityUpdates lets unattended-upgrades say which packages it would never update, of those that are installed.
func testSecurityUpdates(t *testing.T, s *service, m *machine) {
	m.must(t, "unattended-upgrade --dry-run --debug")
	assert.Empty(t, m.must(t, `python3 - <<'end'
import apt, importlib.machinery, importlib.util
loader = importlib.machinery.SourceFileLoader("upgrade", "/usr/bin/unattended-upgrade")
upgrade = importlib.util.module_from_spec(importlib.util.spec_from_loader("upgrade", loader))
loader.exec_module(upgrade)
allowed = upgrade.get_allowed_origins()
for package in apt.Cache():
    if package.is_installed and not any(upgrade.is_in_allowed_origin(v, allowed) for v in package.versions):
        print(package.name, package.installed.version, [(o.origin, o.codename, o.label) for o in package.installed.origins])
end`))
	m.must(t, "dpkg-query --show postgresql-17 pgbackrest docker.io nginx prometheus") // they are among them
}

// testClock puts the clock wrong: chrony puts it right at its start, from a server here, since not every machine that runs the
// tests lets NTP through.
func testClock(t *testing.T, s *service, m *machine) {
	server, err := net.ListenPacket("udp", net.JoinHostPort(m.network.addr(1), "0"))
	require.NoError(t, err)
	defer server.Close()
	go func() { // RFC 5905, 7.3
		for {
			p := make([]byte, 48)
			n, from, err := server.ReadFrom(p)
			if err != nil {
				return
			}
			if n < 48 {
				continue
			}
			now := time.Now()
			seconds, fraction := uint32(now.Unix()+2208988800), uint32(uint64(now.Nanosecond())<<32/1e9)
			copy(p[24:], p[40:48]) // the request's time of transmission
			copy(p, []byte{4<<3 | 4, 1, 6, 0xec, 0, 0, 0, 0, 0, 0, 0, 0, 'T', 'E', 'S', 'T'})
			for _, at := range []int{16, 32, 40} {
				binary.BigEndian.PutUint32(p[at:], seconds)
				binary.BigEndian.PutUint32(p[at+4:], fraction)
			}
			server.WriteTo(p, from)
		}
	}()
	_, port, _ := net.SplitHostPort(server.LocalAddr().String())
	t.Log("before:", m.must(t, "chronyc -n sources; timedatectl show -p NTPSynchronized"))
	m.must(t, "echo server "+m.network.addr(1)+" port "+port+" iburst > /etc/chrony/sources.d/e2e.sources && systemctl stop chrony && date -s '1 hour ago' && systemctl start chrony")
	eventually(t, 3*time.Minute, "the clock is right", func() error {
		out, err := m.sh("chronyc -n tracking && date +%s")
		if err != nil {
			return err
		}
		lines := strings.Split(out, "\n")
		now, err := strconv.ParseInt(lines[len(lines)-1], 10, 64)
		if d := time.Since(time.Unix(now, 0)).Abs(); err == nil && (d > 30*time.Second || !strings.Contains(out, "Leap status     : Normal")) {
			err = fmt.Errorf("%s wrong: %s", d, out)
		}
		return err
	})
	m.must(t, "rm /etc/chrony/sources.d/e2e.sources && chronyc reload sources")
}

// testMemory has everything that runs on the first host run at once, and prints what each takes.
func testMemory(t *testing.T, s *service, m *machine) {
	before := s.totals(t)
	l := startLoad(t, s.url("/"), 4, 200*time.Millisecond)
	least := m.must(t, `systemctl start footfall-backup footfall-drill & least=999999
		while kill -0 $! 2>/dev/null; do
			now=$(awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo); [ $now -ge $least ] || least=$now
			sleep 0.2 # between two looks
		done
		wait $! && echo $least`)
	r := l.finish()
	// On an emulated processor a visit can wait for too long: it is refused then, and none that was answered is lost.
	assert.GreaterOrEqual(t, s.totals(t).Visits, before.Visits+r.Counted, "%s", r)
	t.Logf("%s\n%s", r, m.must(t, `free -m; echo "least available during a backup and a drill: `+least+` MB"
		printf '| %-50s | %9s | %14s |\n' unit 'own, MB' 'with files, MB'
		for unit in /sys/fs/cgroup/system.slice/*/; do [ -e $unit/memory.stat ] &&
			awk -v unit=$(basename $unit) -v all=$(cat $unit/memory.current) '$1 == "anon" { printf "| %-50s | %9d | %14d |\n", unit, $2 / 1048576, all / 1048576 }' $unit/memory.stat
		done | sort -t '|' -k 3 -nr | head -n 20`))
	record("virtual machine: backup and drill under load", r.Requests, r.Failed, r.Took, "least memory available %s MB of 2 GB", least)
	assert.Empty(t, m.must(t, "journalctl --boot --dmesg --no-pager --quiet --grep 'Out of memory|oom-kill' || true"))
	assert.Equal(t, "0", m.must(t, "free -m | awk '/^Swap:/ { print $3 }'"))
}

// testMemoryLimit lets the service be over its limit, by a lower one: the kernel kills it, Docker starts it again, with app_memory.
func testMemoryLimit(t *testing.T, s *service, m *machine) {
	const limit = "/sys/fs/cgroup$(cut -d : -f 3 /proc/$(docker inspect -f '{{.State.Pid}}' " + live + ")/cgroup)/memory.max"
	memory := fmt.Sprint(448 << 20) // app_memory of defaults.yml
	before := s.totals(t)
	restarts := m.must(t, "docker inspect -f '{{.RestartCount}}' "+live)
	assert.Equal(t, memory, m.must(t, "cat "+limit))
	m.must(t, "echo 1M > "+limit)
	eventually(t, 3*time.Minute, "the service is killed and started again", func() error {
		now, err := m.sh("docker inspect -f '{{.RestartCount}}' " + live)
		if err == nil && now == restarts {
			err = fmt.Errorf("not yet")
		}
		return err
	})
	m.must(t, "journalctl --boot --dmesg --no-pager --grep 'Memory cgroup out of memory: Killed process .*footfall'")
	s.awaitPage(t, 3*time.Minute, "the page counts")
	assert.Equal(t, memory, m.must(t, "cat "+limit))
	assert.Equal(t, totals{before.Visits + 1, before.Visitors}, s.totals(t))
}

// testLateVolume gives a machine that has booted without it its data volume, which has grown meanwhile. To fill it
// asks the kernel for a right that a container may not have.
func testLateVolume(t *testing.T, s *service, m *machine) {
	before := s.totals(t)
	m.sh("systemctl poweroff")
	_, err := docker("wait", m.container)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(filepath.Join(m.dir, "data.img"), 9<<30))
	m.power(t)
	eventually(t, 10*time.Minute, "the page says that it does not count, 30 s after the boot", func() error {
		status, body, err := s.get("/")
		if err == nil && status != http.StatusServiceUnavailable {
			err = fmt.Errorf("%d: %.80s", status, body)
		}
		if err == nil {
			_, err = m.sh("awk '{ exit $1 < 30 }' /proc/uptime")
		}
		return err
	})
	m.must(t, "! mountpoint -q /srv/footfall && ! test -e /srv/footfall/postgresql")
	m.plug(t, volumeDisk)
	begin := time.Now()
	s.awaitPage(t, 5*time.Minute, "the page counts")
	record("virtual machine: data volume plugged in late", 0, 0, time.Since(begin), "from its appearance to the first counted visit")
	assert.Equal(t, totals{before.Visits + 1, before.Visitors}, s.totals(t))
	m.awaitBoot(t)
	assert.Empty(t, m.must(t, "systemctl --failed --plain --no-legend"))
	p := s.play(t, "site.yml", "--tags", "postgres")
	p.require(t)
	assert.Equal(t, []string{"postgres : Let the file system fill it [footfall-1]"}, p.Tasks)
}
