//go:build e2e

package e2e

import (
	"encoding/json"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestProvision makes the machines in an empty account, and takes them down again. Each instance
// boots, and Ansible waits for it over SSH with the key that it made for it.
func TestProvision(t *testing.T) {
	c := startCloud(t)
	var first instance
	provision := func(t *testing.T, args ...string) play {
		t.Helper()
		p := c.ansible(t, "site.yml", append([]string{"--tags", "fleet"}, args...)...)
		p.require(t)
		assert.NotContains(t, p.Output, "PRIVATE KEY")
		return p
	}
	again := func(t *testing.T, args ...string) {
		t.Helper()
		p := provision(t, args...)
		assert.Zero(t, p.Changed, "%v", p.Tasks)
	}
	ok := t.Run("a stranger's image is refused", func(t *testing.T) {
		c.putParameter(t, "/e2e/foreign", foreignImage)
		p := c.ansible(t, "site.yml", "--tags", "fleet", "-e", "ami_parameter=/e2e/foreign")
		assert.Equal(t, 1, p.Failed)
		assert.Contains(t, p.Output, "names "+foreignImage+", owner 999999999999, want "+debianOwner)
		assert.Empty(t, c.instances(t))
	})
	ok = ok && t.Run("from nothing", func(t *testing.T) {
		p := provision(t)
		record("provision one host from nothing", 0, 0, p.Took, "changed=%d", p.Changed)
		require.Len(t, c.instances(t), 1)
		first = c.instances(t)["footfall-1"]
		assert.Equal(t, newImage, first.Image, "Debian's newest, not the stranger's")
		assert.Len(t, first.Groups, 2)
		assert.Equal(t, first.Public, c.address(t))
		assert.Equal(t, []volume{{Encrypted: true, Type: "gp3", Instance: first.ID, KeptAfter: true}}, c.volumes(t, "footfall-data"))
		assert.ErrorContains(t, c.call("TerminateInstances", url.Values{"InstanceId.1": {first.ID}}, nil), "may not be terminated")
	})
	ok = ok && t.Run("again, and with --check", func(t *testing.T) {
		c.putParameter(t, "/e2e/debian", oldImage) // another image makes no second host
		again(t, "-e", "ami_parameter=/e2e/debian")
		again(t, "-e", "ami_parameter=/e2e/debian", "--check", "--diff")
	})
	three := []string{"-e", "node_count=3", "-e", "ami_parameter=/e2e/debian"}
	ok = ok && t.Run("three hosts", func(t *testing.T) {
		p := provision(t, three...)
		record("from one host to three", 0, 0, p.Took, "changed=%d", p.Changed)
		hosts := c.instances(t)
		require.Len(t, hosts, 3)
		assert.Equal(t, first.ID, hosts["footfall-1"].ID)
		assert.Equal(t, oldImage, hosts["footfall-3"].Image, "the parameter's")
		assert.Len(t, hosts["footfall-3"].Groups, 1, "its port 80 is nobody's business")
	})
	ok = ok && t.Run("what drifted is put right", func(t *testing.T) {
		second := c.instances(t)["footfall-2"]
		require.NoError(t, c.call("StopInstances", url.Values{"InstanceId.1": {second.ID}}, nil))
		require.NoError(t, c.call("CreateTags", url.Values{"ResourceId.1": {second.ID}, "Tag.1.Key": {"leaving"}, "Tag.1.Value": {"true"}}, nil))
		p := provision(t, append(three, "-e", `{"ssh_cidrs": ["198.51.100.0/24"]}`)...)
		assert.Len(t, p.Tasks, 3, "the firewall, the stopped host, its tag: %v", p.Tasks)
		assert.Equal(t, "running", c.instances(t)["footfall-2"].State)
		again(t, append(three, "-e", `{"ssh_cidrs": ["198.51.100.0/24"]}`, "--check", "--diff")...)
	})
	ok = ok && t.Run("the inventory puts footfall-1 first", func(t *testing.T) {
		playbook := filepath.Join(shared(), "order.yml")
		require.NoError(t, os.WriteFile(playbook, []byte(`
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.import_tasks: `+repoDir()+`/ansible/tasks/hosts.yml
    - ansible.builtin.debug: {msg: "order {{ groups['footfall'] | join(' ') }}"}
`), 0o600))
		p := c.ansible(t, playbook)
		p.require(t)
		assert.Contains(t, p.Output, "order footfall-1 footfall-2 footfall-3")
	})
	ok = ok && t.Run("one host again", func(t *testing.T) {
		p := provision(t)
		record("from three hosts to one", 0, 0, p.Took, "changed=%d", p.Changed)
		hosts := c.instances(t)
		require.Len(t, hosts, 1)
		assert.Equal(t, first.ID, hosts["footfall-1"].ID)
	})
	ok = ok && t.Run("the data outlive the host", func(t *testing.T) {
		require.NoError(t, c.call("ModifyInstanceAttribute", url.Values{"InstanceId": {first.ID}, "DisableApiTermination.Value": {"false"}}, nil))
		require.NoError(t, c.call("TerminateInstances", url.Values{"InstanceId.1": {first.ID}}, nil))
		before := c.address(t)
		p := provision(t)
		record("a lost first host replaced", 0, 0, p.Took, "same address, same data volume")
		second := c.instances(t)["footfall-1"]
		assert.NotEqual(t, first.ID, second.ID)
		assert.Equal(t, before, second.Public)
		assert.Equal(t, []volume{{Encrypted: true, Type: "gp3", Instance: second.ID, KeptAfter: true}}, c.volumes(t, "footfall-data"))
		assert.NotEqual(t, first.tag("ssh_host_key"), second.tag("ssh_host_key"))
		again(t)
	})
	ok = ok && t.Run("destroy", func(t *testing.T) {
		p := c.ansible(t, "destroy.yml", "-e", "project=another")
		assert.Equal(t, 1, p.Failed)
		assert.Len(t, c.instances(t), 1)

		p = c.ansible(t, "destroy.yml", "-e", "project=footfall")
		p.require(t)
		record("destroy", 0, 0, p.Took, "changed=%d, the data volume stays", p.Changed)
		assert.Empty(t, c.instances(t))
		assert.Empty(t, c.address(t))
		assert.Len(t, c.volumes(t, "footfall-data"), 1)
		p = c.ansible(t, "destroy.yml", "-e", "project=footfall")
		p.require(t)
		assert.Zero(t, p.Changed, "%v", p.Tasks)

		c.ansible(t, "destroy.yml", "-e", "project=footfall", "-e", "destroy_data=true").require(t)
		assert.Empty(t, c.volumes(t, "footfall-data"))
	})
	ok = ok && t.Run("the least policy", func(t *testing.T) {
		text, err := os.ReadFile(filepath.Join(repoDir(), "ansible/roles/fleet/files/iam-policy.json"))
		require.NoError(t, err)
		var policy struct{ Statement []struct{ Action any } }
		require.NoError(t, json.Unmarshal(text, &policy))
		allowed := map[string]bool{"sts:GetCallerIdentity": true} // needs no permission
		for _, s := range policy.Statement {
			if one, ok := s.Action.(string); ok {
				s.Action = []any{one}
			}
			for _, a := range s.Action.([]any) {
				allowed[a.(string)] = true
			}
		}
		assert.Equal(t, slices.Sorted(maps.Keys(allowed)), c.actions(t), "allowed, and asked for in this test")
	})
	require.True(t, ok, "each step stands on the one before")
}

// address is the elastic address, or "".
func (c *cloud) address(t *testing.T) string {
	t.Helper()
	var answer struct {
		IPs []string `xml:"addressesSet>item>publicIp"`
	}
	require.NoError(t, c.call("DescribeAddresses", nil, &answer))
	require.LessOrEqual(t, len(answer.IPs), 1)
	return slices.Concat(answer.IPs, []string{""})[0]
}

type volume struct {
	Encrypted bool   `xml:"encrypted"`
	Type      string `xml:"volumeType"`
	Instance  string `xml:"attachmentSet>item>instanceId"`
	KeptAfter bool   // the end of its instance
}

// volumes are those with a name.
func (c *cloud) volumes(t *testing.T, name string) []volume {
	t.Helper()
	var answer struct {
		Volumes []struct {
			volume
			Ends string `xml:"attachmentSet>item>deleteOnTermination"`
		} `xml:"volumeSet>item"`
	}
	require.NoError(t, c.call("DescribeVolumes", url.Values{"Filter.1.Name": {"tag:Name"}, "Filter.1.Value.1": {name}}, &answer))
	var all []volume
	for _, v := range answer.Volumes {
		v.KeptAfter = v.Ends == "false"
		all = append(all, v.volume)
	}
	return all
}
