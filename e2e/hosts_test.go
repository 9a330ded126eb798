//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A network is a bridge of this run alone.
type network struct {
	name   string
	prefix netip.Prefix
}

var networks int

// newNetwork makes a bridge with the given range, or for "" with the first free one of 10.83.0.0/16.
// Addresses that the test does not choose come from the range automatic, if given.
func newNetwork(t *testing.T, prefix, automatic string, options ...string) network {
	t.Helper()
	networks++
	n := network{name: fmt.Sprintf("footfall-e2e-%s-%d", pid, networks)}
	candidates := []string{prefix}
	if prefix == "" {
		candidates = nil
		for i := range 256 {
			candidates = append(candidates, fmt.Sprintf("10.83.%d.0/24", i))
		}
	}
	for begin := time.Now(); ; time.Sleep(time.Second) { // another run on this machine has the range
		err := n.create(t, candidates, automatic, options...)
		if err == nil {
			return n
		}
		require.Less(t, time.Since(begin), 10*time.Minute, "make a network: %v", err)
	}
}

// create makes the network with the first range that is free.
func (n *network) create(t *testing.T, candidates []string, automatic string, options ...string) (err error) {
	t.Helper()
	for _, c := range candidates {
		n.prefix = netip.MustParsePrefix(c)
		args := append([]string{"network", "create", "--label", label + "=" + pid, "--subnet", c, "--gateway", n.addr(1)}, options...) // else it is the first of --ip-range
		if automatic != "" {
			args = append(args, "--ip-range", automatic)
		}
		if _, err = docker(append(args, n.name)...); err == nil {
			joinController(t, *n)
			return nil
		}
	}
	return err
}

// addr is the network's nth address.
func (n network) addr(i int) string {
	a := n.prefix.Addr()
	for range i {
		a = a.Next()
	}
	return a.String()
}

// A host is a container that plays a freshly booted Debian 13 machine.
type host struct {
	name      string // as in the inventory
	container string
	ip        string
	hostKey   string // the public SSH host key, "ssh-ed25519 AAAA..."
}

// sh runs a shell script on the host as root and returns its output; it needs no sshd.
func (h *host) sh(script string) (string, error) {
	return docker("exec", h.container, "sh", "-c", script)
}

// must is sh for a script that has to succeed.
func (h *host) must(t *testing.T, script string) string {
	t.Helper()
	out, err := h.sh(script)
	require.NoError(t, err, "on %s", h.name)
	return out
}

// key makes (once) the operator's SSH key pair and returns the path of the private half, which is
// the same inside the controller.
var key = sync.OnceValues(func() (string, error) { return newKey("operator") })

// newKey makes an SSH key pair in the run's directory.
func newKey(name string) (string, error) {
	path := filepath.Join(shared(), name)
	_, err := sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path)
	return path, err
}

// bootHost boots one host. With hostKey, a private key, the host has that one, as a cloud's
// user data would give it; else a new one.
func bootHost(t *testing.T, n network, name, ip string, hostKey []byte) *host {
	t.Helper()
	operator, err := key()
	require.NoError(t, err)
	authorized, err := os.ReadFile(operator + ".pub")
	require.NoError(t, err)
	h := &host{name: name, ip: ip, container: fmt.Sprintf("footfall-e2e-%s-%s-%s", pid, n.name[len(n.name)-1:], name)}
	if hostKey == nil {
		path, err := newKey(h.container)
		require.NoError(t, err)
		hostKey, err = os.ReadFile(path)
		require.NoError(t, err)
	}
	private := filepath.Join(shared(), h.container+".hostkey")
	require.NoError(t, os.WriteFile(private, hostKey, 0o600))
	public, err := sh("ssh-keygen", "-y", "-f", private)
	require.NoError(t, err)
	h.hostKey = strings.Join(strings.Fields(public)[:2], " ")

	// Not --privileged: it asks for every capability, and root may not have them all. Modules,
	// clock and raw I/O would be the machine's.
	_, err = docker("create", "--name", h.container, "--hostname", name, "--label", label+"="+pid,
		"--network", n.name, "--ip", ip, "--restart", "always", "--cgroupns", "private",
		"--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--cap-drop", "SYS_TIME", "--cap-drop", "SYS_MODULE", "--cap-drop", "SYS_RAWIO",
		"--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined", "--security-opt", "systempaths=unconfined",
		"--device-cgroup-rule", "b 7:* rmw", // loop devices, for the volumes of a cloud
		"--tmpfs", "/run:exec", "--tmpfs", "/run/lock", "--tmpfs", "/tmp:exec",
		"--volume", "/var/lib/docker", "--volume", "/var/lib/containerd",
		"--env", "HOST_DNS="+nameserver(), hostImage)
	require.NoError(t, err)
	files := tarball(t,
		tar.Header{Name: "etc/ssh/ssh_host_ed25519_key", Mode: 0o600}, hostKey,
		tar.Header{Name: "etc/ssh/ssh_host_ed25519_key.pub", Mode: 0o644}, []byte(h.hostKey+"\n"),
		tar.Header{Name: "home/admin/.ssh/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 1000, Gid: 1000}, []byte(nil),
		tar.Header{Name: "home/admin/.ssh/authorized_keys", Mode: 0o600, Uid: 1000, Gid: 1000}, authorized,
	)
	_, err = shIn(files, "docker", "cp", "-", h.container+":/")
	require.NoError(t, err)
	_, err = docker("start", h.container)
	require.NoError(t, err)
	return h
}

// awaitBoot waits until systemd has started everything and sshd answers.
func (h *host) awaitBoot(t *testing.T) {
	t.Helper()
	eventually(t, 3*time.Minute, h.name+" boots", func() error {
		if state, err := h.sh("systemctl is-system-running"); err != nil {
			return fmt.Errorf("state %q: %w", state, err)
		}
		c, err := net.DialTimeout("tcp", net.JoinHostPort(h.ip, "22"), time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
}

// bootHosts boots n fresh hosts in their own network and writes their inventory: group
// footfall, the hosts footfall-1 to footfall-n.
func bootHosts(t *testing.T, n int) *fleet {
	t.Helper()
	setUp(t)
	begin := time.Now()
	f := &fleet{network: newNetwork(t, "", "")}
	for i := 1; i <= n; i++ {
		f.hosts = append(f.hosts, bootHost(t, f.network, fmt.Sprintf("footfall-%d", i), f.network.addr(10+i), nil))
	}
	for _, h := range f.hosts {
		h.awaitBoot(t)
	}
	f.writeInventory(t)
	progress("%d hosts booted in %.1f s", n, time.Since(begin).Seconds())
	return f
}

// A fleet is some hosts in one network and the inventory that names them.
type fleet struct {
	network   network
	hosts     []*host
	inventory string // path, the same inside the controller
}

// writeInventory writes the inventory of the hosts as they are now.
func (f *fleet) writeInventory(t *testing.T) {
	t.Helper()
	operator, err := key()
	require.NoError(t, err)
	var inventory, known strings.Builder
	knownHosts := filepath.Join(shared(), f.network.name+".known_hosts")
	f.inventory = filepath.Join(shared(), f.network.name+".ini")
	inventory.WriteString("localhost ansible_connection=local provision=false\n\n[footfall]\n")
	for _, h := range f.hosts {
		fmt.Fprintf(&inventory, "%s ansible_host=%s\n", h.name, h.ip) // without private_ip: its default is meant
		fmt.Fprintf(&known, "%s %s\n", h.ip, h.hostKey)
	}
	fmt.Fprintf(&inventory, "\n[footfall:vars]\nansible_user=admin\nansible_ssh_private_key_file=%s\n", operator)
	fmt.Fprintf(&inventory, "ansible_ssh_common_args='-o StrictHostKeyChecking=yes -o UserKnownHostsFile=%s'\n", knownHosts)
	require.NoError(t, os.WriteFile(f.inventory, []byte(inventory.String()), 0o600))
	require.NoError(t, os.WriteFile(knownHosts, []byte(known.String()), 0o600))
}

// remove removes the fleet's hosts and network before the run's end.
func (f *fleet) remove() {
	for _, h := range f.hosts {
		docker("rm", "-f", "-v", h.container)
	}
	docker("network", "disconnect", "-f", f.network.name, controllerName())
	docker("network", "rm", f.network.name)
}

// nameserver is the first one this machine asks.
func nameserver() string {
	text, _ := os.ReadFile("/etc/resolv.conf")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" && !strings.HasPrefix(f[1], "127.") {
			return f[1]
		}
	}
	// A resolver on loopback (systemd-resolved) keeps the real ones here.
	text, _ = os.ReadFile("/run/systemd/resolve/resolv.conf")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			return f[1]
		}
	}
	return ""
}

// tarball packs pairs of tar.Header and []byte.
func tarball(t *testing.T, headersAndTexts ...any) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := 0; i < len(headersAndTexts); i += 2 {
		header, text := headersAndTexts[i].(tar.Header), headersAndTexts[i+1].([]byte)
		header.Size = int64(len(text))
		require.NoError(t, w.WriteHeader(&header))
		_, err := w.Write(text)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}
