//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestHarness shows that Ansible reaches fresh hosts over SSH with their keys known, that a changed
// host key is refused, and that nothing but the run's own networks can be reached.
func TestHarness(t *testing.T) {
	f := bootHosts(t, 2)
	defer f.remove()
	playbook := filepath.Join(shared(), "harness.yml")
	require.NoError(t, os.WriteFile(playbook, []byte(`
- hosts: footfall
  become: true
  tasks:
    - ansible.builtin.copy: {content: seen, dest: /etc/footfall-harness, mode: "0644"}
`), 0o600))

	p := f.ansible(t, playbook)
	assert.Equal(t, 2, p.Changed)
	assert.Len(t, p.Tasks, 2)
	assert.Equal(t, "seen", f.hosts[1].must(t, "cat /etc/footfall-harness"))
	p = f.ansible(t, playbook)
	assert.Equal(t, 0, p.Changed, "%v", p.Tasks)

	// An address outside: from the documentation range of RFC 5737.
	_, err := docker("exec", controllerName(), "ip", "route", "get", "192.0.2.1")
	assert.ErrorContains(t, err, "unreachable")

	f.hosts[0].hostKey, f.hosts[1].hostKey = f.hosts[1].hostKey, f.hosts[0].hostKey
	f.writeInventory(t)
	fresh := environ{"ANSIBLE_SSH_ARGS=-o ControlMaster=no"} // not over the connection that is still open
	p = tryAnsible(t, fresh, f.inventory, playbook)
	assert.Error(t, p.Err)
	assert.Equal(t, 1, p.Recap[f.hosts[0].name].Unreachable)
	assert.Contains(t, p.Output, "Host key verification failed")
}
