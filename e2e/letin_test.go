//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// runsFromAnywhere deploys, drills a restore and asks for the status with the rights of a deployment, from an address
// that nobody has let in; and ends runs in every way.
func (c *cloud) runsFromAnywhere(t *testing.T, settings []string) {
	const (
		colleague = "198.51.100.1/32"
		forgotten = "198.51.100.2/32"
		here      = "198.51.100.77"
	)
	before, err := c.letIn()
	require.NoError(t, err)
	require.Empty(t, before)
	c.from.Store(here)
	defer c.from.Store("203.0.113.7")
	until := func(d time.Duration) string {
		return "until " + time.Now().Add(d).UTC().Format(time.RFC3339) + " for run 0123456789ab"
	}
	rule := func(action, cidr, description string) {
		t.Helper()
		require.NoError(t, c.call(action, url.Values{"GroupName": {"footfall-operators"}, "GroupId": {c.group(t, "footfall-operators")},
			"IpPermissions.1.IpProtocol": {"tcp"}, "IpPermissions.1.FromPort": {"22"}, "IpPermissions.1.ToPort": {"22"},
			"IpPermissions.1.IpRanges.1.CidrIp": {cidr}, "IpPermissions.1.IpRanges.1.Description": {description}}, nil))
	}
	goesOn := until(time.Hour)
	rule("AuthorizeSecurityGroupIngress", colleague, goesOn)
	rule("AuthorizeSecurityGroupIngress", forgotten, until(-time.Second))
	are := func(what string, want map[string]string) {
		t.Helper()
		want[colleague] = goesOn
		eventually(t, 10*time.Second, what, func() error {
			rules, err := c.letIn()
			if err != nil || maps.Equal(want, rules) {
				return err
			}
			return fmt.Errorf("rules %v, want %v", rules, want)
		})
	}

	// What the rules were while it ran.
	during := func(run func()) map[string]string {
		ctx, stop := context.WithCancel(t.Context())
		all, done := map[string]string{}, make(chan error, 1)
		go func() {
			var failed error
			for ctx.Err() == nil {
				rules, err := c.letIn()
				failed = errors.Join(failed, err)
				maps.Copy(all, rules)
				time.Sleep(100 * time.Millisecond) // between two looks
			}
			done <- failed
		}()
		run()
		stop()
		require.NoError(t, <-done)
		return all
	}
	says := regexp.MustCompile(`^until 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ for run [0-9a-f]{12}$`)
	for _, playbook := range []string{"deploy.yml", "restore.yml"} {
		rules := during(func() {
			c.ansibleAs(t, deployID, playbook, append(settings, "-e", "version="+repoVersion(t))...).require(t)
		})
		assert.Regexp(t, says, rules[here+"/32"], playbook)
		are("the colleague's rule is left", map[string]string{})
	}

	// make status has no playbook.
	inController := func(accessKey, script string) (string, error) { return c.inController(t, accessKey, script) }
	rules := during(func() {
		out, err := inController(deployID, "../delivery/fleet.py status")
		assert.Contains(t, out, "footfall-1", "%v", err)
	})
	assert.Regexp(t, says, rules[here+"/32"], "status")
	are("status let itself out", map[string]string{})

	// A process in the place of a run.
	begin := func(accessKey string) string {
		t.Helper()
		pid, err := inController(accessKey, "sleep 600 >/dev/null 2>&1 & echo $!; python3 tasks/let-in $! "+region)
		require.NoError(t, err)
		return strings.TrimSpace(pid)
	}
	kill := func(pid string) {
		t.Helper()
		_, err := inController(deployID, "kill -9 "+pid)
		require.NoError(t, err)
	}
	now := func() string {
		t.Helper()
		rules, err := c.letIn()
		require.NoError(t, err)
		require.Regexp(t, says, rules[here+"/32"])
		return rules[here+"/32"]
	}
	// Of two runs at once either may be the deployment: the later one makes the rule its own, and gives it back.
	for _, keys := range [][2]string{{deployID, operatorID}, {operatorID, deployID}} {
		one := begin(keys[0])
		ofOne := now()
		two := begin(keys[1])
		require.NotEqual(t, ofOne, now())
		kill(two)
		are("the first run from this address has its rule again", map[string]string{here + "/32": ofOne})
		kill(one)
		are("killed, the run is let in no more", map[string]string{})
	}

	// With the process that watches over it: the rule's time is past, and a run from elsewhere takes it out.
	three := begin(operatorID)
	watching, err := inController(deployID, `for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline | grep -q "^python3 tasks/let-in" && echo ${p#/proc/}; done; true`)
	require.NoError(t, err)
	require.NotEmpty(t, strings.Fields(watching))
	kill(strings.Join(append(strings.Fields(watching), three), " "))
	late := now()
	rule("UpdateSecurityGroupRuleDescriptionsIngress", here+"/32", until(-time.Second))
	c.from.Store("198.51.100.78")
	four := begin(operatorID)
	rules, err = c.letIn()
	require.NoError(t, err)
	assert.NotContains(t, rules, here+"/32", late)
	assert.Contains(t, rules, "198.51.100.78/32")
	kill(four)
	are("the last run is out", map[string]string{})

	c.from.Store("192.0.2.9")
	kill(begin(operatorID))
	are("one of ssh_cidrs needs no rule", map[string]string{})
	_, err = inController(deployID, `for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline | grep "^python3 tasks/let-in" && exit 1; done; true`)
	assert.NoError(t, err, "nothing stays behind")
}

// inController runs a script in ansible/ as make does, with an access key. The inventory's addresses are moto's,
// which lead nowhere for SSH.
func (c *cloud) inController(t *testing.T, accessKey, script string) (string, error) {
	t.Helper()
	operator, err := key()
	require.NoError(t, err)
	inventory := filepath.Join(shared(), "private.ini")
	var private strings.Builder
	for name, i := range c.instances(t) {
		fmt.Fprintf(&private, "%s ansible_host=%s\n", name, i.IP)
	}
	require.NoError(t, os.WriteFile(inventory, []byte(private.String()), 0o600))
	command := []string{"exec", "--workdir", filepath.Join(repoDir(), "ansible"), "--env", "ANSIBLE_PRIVATE_KEY_FILE=" + operator,
		"--env", "ANSIBLE_INVENTORY=inventory/aws_ec2.yml," + inventory}
	for _, e := range c.env(accessKey) {
		command = append(command, "--env", e)
	}
	return docker(append(command, controllerName(), "sh", "-c", script)...)
}

// group is the id of a security group.
func (c *cloud) group(t *testing.T, name string) string {
	t.Helper()
	var answer struct {
		IDs []string `xml:"securityGroupInfo>item>groupId"`
	}
	require.NoError(t, c.call("DescribeSecurityGroups", url.Values{"Filter.1.Name": {"group-name"}, "Filter.1.Value.1": {name}}, &answer))
	require.Len(t, answer.IDs, 1)
	return answer.IDs[0]
}
