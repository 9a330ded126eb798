//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestProvision goes from an empty account to a counting page and back, by one command: makes the machines, adds
// hosts and removes them while visitors come, loses the first one, takes everything down. Each instance boots,
// and Ansible waits for it over SSH with the key that it made for it.
func TestProvision(t *testing.T) {
	c := startCloud(t)
	s := &service{fleet: &fleet{network: c.network}, version: repoVersion(t)}
	var first instance
	run := func(t *testing.T, args ...string) play {
		t.Helper()
		p := c.ansible(t, "site.yml", args...)
		p.require(t)
		assert.NotContains(t, p.Output, "PRIVATE KEY")
		return p
	}
	// machines is site.yml for the machines alone; site is all of it, up to the look from outside.
	machines := func(t *testing.T, args ...string) play {
		return run(t, slices.Concat(args, []string{"--tags", "fleet"})...)
	}
	settings := []string{"-e", "app_image=" + appImage(), "-e", "app_image_archive=" + archive(t, release(t)),
		"-e", "requests_per_second=100000",
		// The bucket that site.yml makes, by TLS before the emulator; the keys are those of the host's role.
		"-e", "backup_s3_endpoint=" + c.bucket.endpoint, "-e", "backup_s3_ca=/etc/ssl/bucket.pem",
		"-e", "monitoring=false"} // TestService has it
	site := func(t *testing.T, args ...string) play {
		t.Helper()
		p := run(t, slices.Concat(settings, args)...)
		s.hosts = nil
		for _, name := range slices.Sorted(maps.Keys(c.instances(t))) {
			s.hosts = append(s.hosts, c.host(t, name))
		}
		return p
	}
	again := func(t *testing.T, p play) {
		t.Helper()
		assert.Zero(t, p.Changed, "%v", p.Tasks)
	}
	// siteUnderLoad lets visitors come meanwhile.
	siteUnderLoad := func(t *testing.T, name string, args ...string) {
		t.Helper()
		before := s.totals(t)
		l := startLoad(t, s.url("/"), 4, 50*time.Millisecond)
		p := site(t, args...)
		r := l.finish()
		record(name, r.Requests, r.Failed, p.Took, "changed=%d; failed GETs %d, slowest answer %d ms", p.Changed, r.failedGETs(), r.Slowest.Milliseconds())
		assert.Zero(t, r.failedGETs(), "%s", r)
		assert.Equal(t, before.Visits+r.Counted, s.totals(t).Visits, "each answered visit is counted once")
		s.recount(t)
	}

	// One command to a page with a name, watched over: everything that site.yml does but what a test alone has.
	named := []string{"-e", "monitoring=true", "-e", "domain=" + cloudDomain, "-e", "dns_zone=" + cloudZone, "-e", "acme_email=ops@example.org",
		"-e", "acme_server=https://" + c.acme.ip + ":14000/dir", "-e", "acme_ca_bundle=/etc/ssl/acme-api.pem"}
	// browse opens the page by its name and the elastic address, as a visitor who trusts the authority.
	browse := func(t *testing.T) string {
		t.Helper()
		page, err := c.inController(t, "", "curl --silent --show-error --fail --location http://"+cloudDomain+"/")
		require.NoError(t, err)
		return page
	}

	ok := t.Run("a stranger's image is refused", func(t *testing.T) {
		c.putParameter(t, "/e2e/foreign", foreignImage)
		p := c.ansible(t, "site.yml", "--tags", "fleet", "-e", "ami_parameter=/e2e/foreign")
		assert.Equal(t, 1, p.Failed)
		assert.Contains(t, p.Output, "names "+foreignImage+", whose owner is 999999999999; it must be "+debianOwner)
		assert.Empty(t, c.instances(t))
	})
	ok = ok && t.Run("a zone that will not do", func(t *testing.T) {
		for wrong, want := range map[string]string{
			`{"aws_zone": "z"}`: region + "z has no default subnet with t3.small; zones that do: " + region + "a, " + region + "b, " + region + "c. Set aws_zone",
			`{"aws_zone": "c", "instance_type": "a1.large"}`: region + "c has no default subnet with a1.large; zones that do: " + region + "a, " + region + "b. Set",
		} {
			p := c.ansible(t, "site.yml", "--tags", "fleet", "-e", wrong)
			assert.Equal(t, 1, p.Failed)
			assert.Contains(t, strings.Join(strings.Fields(p.Output), " "), want)
		}
		assert.Empty(t, c.instances(t))
	})
	ok = ok && t.Run("from nothing", func(t *testing.T) {
		p := site(t, named...)
		record("site.yml: an empty account to trusted HTTPS", 0, 0, p.Took, "changed=%d", p.Changed)
		assert.Empty(t, regexp.MustCompile(`no HTTPS yet(?s:.{0,900})|[.]{3}ignoring`).FindString(p.Output), "the controller sees the record, the authority the page")
		require.Len(t, c.instances(t), 1)
		first = c.instances(t)["footfall-1"]
		assert.Equal(t, newImage, first.Image, "Debian's newest, not the stranger's")
		assert.Len(t, first.Groups, 3)
		assert.Equal(t, "required", first.Tokens, "of the metadata service")
		assert.Equal(t, first.Public, c.address(t))
		data := c.volumes(t, "footfall-data")
		require.Len(t, data, 1)
		assert.Equal(t, volume{data[0].ID, true, "gp3", first.ID, true}, data[0])
		assert.ErrorContains(t, c.call("TerminateInstances", url.Values{"InstanceId.1": {first.ID}}, nil), "may not be terminated")
		assert.Equal(t, "ext4", s.edge().must(t, "findmnt --noheadings --output FSTYPE /srv/footfall"), "the data volume")
		assert.Contains(t, browse(t), "You have visited this page")
		assert.Contains(t, s.edge().must(t, "runuser -u postgres -- pgbackrest --stanza=footfall info"), "status: ok")
		assert.Contains(t, s.edge().must(t, "cat /etc/pgbackrest.conf"), "repo1-s3-key-type=auto")
	})
	c.putParameter(t, "/e2e/debian", oldImage)
	older := []string{"-e", "ami_parameter=/e2e/debian"} // another image makes no second host
	ok = ok && t.Run("again, and with --check", func(t *testing.T) {
		again(t, site(t, append(older, named...)...))
		again(t, machines(t, append(older, "--check", "--diff")...))
		browse(t)
	})
	ok = ok && t.Run("status", func(t *testing.T) {
		out, err := c.inController(t, operatorID, "../delivery/fleet.py status")
		assert.NoError(t, err, "red: %s", out)
		assert.Regexp(t, `(?m)^footfall-1 +(blue|green) +`+s.version+` +yes +\d+[smh] +\S+ +44d +\d+% +\d+[smh] +- *$`, out)
	})
	ok = ok && t.Run("the record of the name", func(t *testing.T) { testRecord(t, c, machines) })
	// loseFirst ends the first host, and has site.yml make it again on its address and its volume.
	loseFirst := func(t *testing.T, what string, args ...string) {
		t.Helper()
		require.NoError(t, c.call("ModifyInstanceAttribute", url.Values{"InstanceId": {first.ID}, "DisableApiTermination.Value": {"false"}}, nil))
		const totals = "SELECT visits, visitors FROM totals"
		before, address, data := s.sql(t, totals), c.address(t), c.volumes(t, "footfall-data")[0]
		require.NoError(t, c.call("TerminateInstances", url.Values{"InstanceId.1": {first.ID}}, nil))
		p := site(t, args...)
		record(what, 0, 0, p.Took, "same address, same data volume, lost 0")
		second := c.instances(t)["footfall-1"]
		assert.NotEqual(t, first.ID, second.ID)
		assert.Equal(t, address, second.Public)
		assert.Equal(t, []volume{{data.ID, true, "gp3", second.ID, true}}, c.volumes(t, "footfall-data"))
		assert.NotEqual(t, first.tag("ssh_host_key"), second.tag("ssh_host_key"))
		assert.Equal(t, before, s.sql(t, totals))
		s.recount(t)
		first = second
	}
	ok = ok && t.Run("the data outlive the host", func(t *testing.T) {
		loseFirst(t, "the first host lost, made again, with its certificate", slices.Concat(older, named, []string{"-e", "aws_zone=c"})...) // its volume's zone comes first
		assert.Contains(t, browse(t), "You have visited this page")
	})
	ok = ok && t.Run("the name taken away", func(t *testing.T) {
		again(t, site(t, slices.Concat(older, []string{"-e", "monitoring=true", "-e", "acme_email=ops@example.org",
			"-e", "acme_server=https://" + c.acme.ip + ":14000/dir", "-e", "acme_ca_bundle=/etc/ssl/acme-api.pem"})...)) // not told, it stays
		browse(t)
		p := site(t, append(older, "-e", "domain=")...)
		assert.Contains(t, p.Output, "domain is empty: HTTPS for "+cloudDomain+" ends")
		assert.Contains(t, s.visit(t), "You have visited this page", "by the address, without HTTPS")
		assert.Equal(t, "inactive", s.edge().must(t, "systemctl is-active footfall-certificate.timer footfall-certificate.service | uniq"), "it would switch HTTPS on again")
		out, err := c.inController(t, operatorID, "../delivery/fleet.py status")
		assert.NoError(t, err, "red: %s", out)
		assert.Regexp(t, `(?m)^footfall-1 +\S+ +\S+ +yes +\S+ +\S+ +- +\d+%`, out, "no certificate is served")
	})
	three := append(older, "-e", "node_count=3")
	ok = ok && t.Run("three hosts", func(t *testing.T) {
		siteUnderLoad(t, "from one host to three, under load", three...)
		hosts := c.instances(t)
		require.Len(t, hosts, 3)
		assert.Equal(t, first.ID, hosts["footfall-1"].ID)
		assert.Equal(t, []string{region + "a", region + "b", region + "c"}, []string{first.Zone, hosts["footfall-2"].Zone, hosts["footfall-3"].Zone})
		assert.Equal(t, oldImage, hosts["footfall-3"].Image, "the parameter's")
		assert.Len(t, hosts["footfall-3"].Groups, 2, "its port 80 is closed to the public")
		assert.Contains(t, s.hosts[2].must(t, "cat /var/log/nginx/access.log"), `"path":"/"`, "the edge sends the third host nothing")
	})
	ok = ok && t.Run("a forgotten number of hosts", func(t *testing.T) {
		again(t, machines(t, older...))
		assert.Len(t, c.instances(t), 3)
	})
	ok = ok && t.Run("what drifted is put right", func(t *testing.T) {
		second := c.instances(t)["footfall-2"]
		require.NoError(t, c.call("StopInstances", url.Values{"InstanceId.1": {second.ID}}, nil))
		require.NoError(t, c.call("CreateTags", url.Values{"ResourceId.1": {second.ID}, "Tag.1.Key": {"leaving"}, "Tag.1.Value": {"true"}}, nil))
		var profile struct {
			ID string `xml:"iamInstanceProfileAssociationSet>item>associationId"`
		}
		require.NoError(t, c.call("DescribeIamInstanceProfileAssociations", nil, &profile))
		require.NoError(t, c.call("DisassociateIamInstanceProfile", url.Values{"AssociationId": {profile.ID}}, nil))
		p := machines(t, append(three, "-e", `{"ssh_cidrs": ["198.51.100.0/24"]}`)...)
		assert.Len(t, p.Tasks, 4, "the firewall, the role of the first host, the stopped host, its tag: %v", p.Tasks)
		assert.Equal(t, "running", c.instances(t)["footfall-2"].State)
		again(t, machines(t, append(three, "-e", `{"ssh_cidrs": ["198.51.100.0/24"]}`, "--check", "--diff")...))
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
		p := c.ansible(t, playbook, "-e", "ssh_over=private") // no rule of a firewall is asked for
		p.require(t)
		assert.Contains(t, p.Output, "order footfall-1 footfall-2 footfall-3")
	})
	ok = ok && t.Run("the first of three hosts is lost", func(t *testing.T) {
		loseFirst(t, "the first of three hosts lost, made again", older...)
		require.Len(t, s.hosts, 3)
		for _, h := range s.hosts[1:] {
			h.must(t, "! test -e /srv/footfall/postgresql")
		}
		assert.Contains(t, s.visit(t), "You have visited this page")
		again(t, site(t, older...))
	})
	ok = ok && t.Run("one host alone", func(t *testing.T) {
		for _, playbook := range []string{"site.yml", "deploy.yml"} {
			p := c.ansible(t, playbook, "--limit", "footfall-2", "-e", "version="+s.version)
			assert.Error(t, p.Err)
			assert.Contains(t, p.Output, "--limit is footfall-2; run without it, on all hosts")
			assert.Equal(t, []string{"footfall-2"}, slices.Collect(maps.Keys(p.Recap)))
		}
	})
	ok = ok && t.Run("no host is removed that the edge sends visits to", func(t *testing.T) {
		p := c.ansible(t, "site.yml", "--tags", "fleet", "-e", "node_count=1")
		assert.Error(t, p.Err)
		assert.Contains(t, p.Output, "node_count is 1: footfall-2, footfall-3 will be drained and removed")
		assert.Contains(t, strings.Join(strings.Fields(p.Output), " "), "footfall-2, footfall-3 not removed, the edge still sends visits there")
		assert.Len(t, c.instances(t), 3)
	})
	ok = ok && t.Run("one host again", func(t *testing.T) {
		siteUnderLoad(t, "from three hosts to one, under load", append(older, "-e", "node_count=1")...)
		hosts := c.instances(t)
		require.Len(t, hosts, 1)
		assert.Equal(t, first.ID, hosts["footfall-1"].ID)
	})
	ok = ok && t.Run("a run from anywhere", func(t *testing.T) { c.runsFromAnywhere(t, settings) })
	ok = ok && t.Run("another machine for the first host", func(t *testing.T) {
		before, address, data := s.totals(t), c.address(t), c.volumes(t, "footfall-data")[0]
		old := c.instances(t)["footfall-1"]
		l := startLoad(t, s.url("/"), 4, 50*time.Millisecond)
		ended := make(chan play)
		go func() {
			ended <- c.ansible(t, "replace.yml", slices.Concat(settings, []string{"-e", "host=footfall-1", "-e", "instance_type=t3.medium"})...)
		}()
		eventually(t, 3*time.Minute, "the old instance has ended", func() error {
			if holder := c.volumes(t, "footfall-data")[0].Instance; holder != "" {
				return fmt.Errorf("%s has the volume", holder)
			}
			return nil
		})
		c.keep(t, data.ID, 20*time.Second)
		p := <-ended
		p.require(t)
		r := l.finish()
		s.hosts = []*host{c.host(t, "footfall-1")}
		second := c.instances(t)["footfall-1"]
		assert.NotEqual(t, old.ID, second.ID)
		assert.Equal(t, "t3.medium", second.Type)
		assert.Equal(t, address, second.Public)
		assert.Equal(t, []volume{{data.ID, true, "gp3", second.ID, true}}, c.volumes(t, "footfall-data"))
		s.balance(t, "the first host replaced, its volume 20 s late", before, r, 0, p.Took)
	})
	ok = ok && t.Run("a machine that does not answer", func(t *testing.T) {
		const totals = "SELECT visits, visitors FROM totals"
		before, address, data := s.sql(t, totals), c.address(t), c.volumes(t, "footfall-data")[0]
		old := c.instances(t)["footfall-1"]
		_, err := docker("pause", s.edge().container) // EC2 says that it runs
		require.NoError(t, err)
		p := c.ansible(t, "replace.yml", slices.Concat(settings, []string{"-e", "host=footfall-1"})...)
		p.require(t)
		record("the first host, which does not answer, replaced", 0, 0, p.Took, "same address, same data volume, lost 0")
		s.hosts = []*host{c.host(t, "footfall-1")}
		second := c.instances(t)["footfall-1"]
		assert.NotEqual(t, old.ID, second.ID)
		assert.Equal(t, address, second.Public)
		assert.Equal(t, []volume{{data.ID, true, "gp3", second.ID, true}}, c.volumes(t, "footfall-data"))
		assert.Equal(t, before, s.sql(t, totals))
		s.recount(t)
	})
	ok = ok && t.Run("the volume grows", func(t *testing.T) {
		assert.Equal(t, []string{"fleet : Grow the data volume to data_size [localhost]"}, machines(t, "-e", "data_size=21").Tasks)
		assert.Equal(t, "gp3", c.volumes(t, "footfall-data")[0].Type)
		again(t, machines(t)) // it is not made smaller
	})
	ok = ok && t.Run("two instances of one name", func(t *testing.T) {
		var twin struct {
			ID string `xml:"instancesSet>item>instanceId"`
		}
		require.NoError(t, c.call("RunInstances", url.Values{"ImageId": {newImage}, "MinCount": {"1"}, "MaxCount": {"1"},
			"TagSpecification.1.ResourceType": {"instance"}, "TagSpecification.1.Tag.1.Key": {"project"}, "TagSpecification.1.Tag.1.Value": {"footfall"},
			"TagSpecification.1.Tag.2.Key": {"twin"}, "TagSpecification.1.Tag.2.Value": {"true"}}, &twin))
		defer func() { require.NoError(t, c.call("TerminateInstances", url.Values{"InstanceId.1": {twin.ID}}, nil)) }()
		require.NoError(t, c.call("StopInstances", url.Values{"InstanceId.1": {twin.ID}}, nil)) // it does not boot here
		require.NoError(t, c.call("CreateTags", url.Values{"ResourceId.1": {twin.ID}, "Tag.1.Key": {"Name"}, "Tag.1.Value": {"footfall-1"}}, nil))
		p := c.ansible(t, "site.yml", "--tags", "fleet")
		assert.Error(t, p.Err)
		assert.Contains(t, p.Output, "of one name there may be one: footfall-1, footfall-1, footfall-data")
	})
	ok = ok && t.Run("an intruder deletes the backups", func(t *testing.T) {
		s.awaitArchived(t)
		const repository = "cd / && runuser -u postgres -- pgbackrest --stanza=footfall "
		s.edge().must(t, "for what in archive backup dump; do "+repository+"repo-rm --recurse $what; done")
		assert.NotContains(t, s.edge().must(t, repository+"info"), "status: ok")
		page, err := os.ReadFile(filepath.Join(repoDir(), "ansible/AWS.md"))
		require.NoError(t, err)
		block := regexp.MustCompile("(?ms)^```sh as in TestProvision\nbucket=\\S+ since=\\S+\n(.*?)^```$").FindStringSubmatch(string(page))
		require.NotEmpty(t, block)
		out, err := c.inController(t, administratorID, "set -eu\nexport AWS_REGION="+region+"\nbucket="+fleetBucket+" since="+time.Now().UTC().Add(-time.Minute).Format("2006-01-02T15:04")+"\n"+block[1])
		require.NoError(t, err, out)
		assert.Contains(t, s.edge().must(t, repository+"info"), "status: ok")
		s.edge().must(t, repository+"verify")
	}) // the next step restores from them
	ok = ok && t.Run("a lost zone", func(t *testing.T) {
		s.awaitArchived(t)
		before, address, left := s.totals(t), c.address(t), c.volumes(t, "footfall-data")[0]
		old := c.instances(t)["footfall-1"]
		p := c.ansible(t, "replace.yml", slices.Concat(settings, []string{"-e", "host=footfall-1", "-e", "zone_lost=true", "-e", "aws_zone=b"})...)
		p.require(t)
		s.hosts = []*host{c.host(t, "footfall-1")}
		second := c.instances(t)["footfall-1"]
		assert.NotEqual(t, old.ID, second.ID)
		assert.Equal(t, region+"b", second.Zone)
		assert.Equal(t, address, second.Public)
		assert.Equal(t, left.ID, c.volumes(t, "footfall-data-left")[0].ID, "the volume in the lost zone is kept")
		assert.NotEqual(t, left.ID, c.volumes(t, "footfall-data")[0].ID)
		record("the first host's zone lost, made again in another from the bucket", 0, 0, p.Took, "same address, a new volume, lost 0")
		assert.Equal(t, before, s.totals(t))
		s.recount(t)
		// The old writer's credentials are for an instance that the policy no longer names.
		policy, err := c.post("iam", "application/x-www-form-urlencoded", "", "Action=GetRolePolicy&RoleName=footfall-backup&PolicyName=repository&Version=2010-05-08", "/")
		require.NoError(t, err)
		assert.Contains(t, string(policy), second.ID)
		assert.NotContains(t, string(policy), old.ID)
	})
	ok = ok && t.Run("the data outlive host and volume", func(t *testing.T) {
		s.awaitArchived(t)
		before := s.totals(t)
		lost := c.instances(t)["footfall-1"]
		require.NoError(t, c.call("ModifyInstanceAttribute", url.Values{"InstanceId": {lost.ID}, "DisableApiTermination.Value": {"false"}}, nil))
		require.NoError(t, c.call("TerminateInstances", url.Values{"InstanceId.1": {lost.ID}}, nil))
		eventually(t, time.Minute, "the volume is deleted", func() error {
			return c.call("DeleteVolume", url.Values{"VolumeId": {c.volumes(t, "footfall-data")[0].ID}}, nil)
		})
		p := site(t)
		record("the first host and its volume lost, made again from the bucket", 0, 0, p.Took, "same address, a new volume, lost 0")
		assert.Equal(t, before, s.totals(t))
		s.recount(t)
	})
	ok = ok && t.Run("destroy", func(t *testing.T) {
		p := c.ansible(t, "destroy.yml", "-e", "project=another")
		assert.Equal(t, 1, p.Failed)
		assert.Len(t, c.instances(t), 1)

		p = c.ansible(t, "destroy.yml", "-e", "project=footfall", "-e", "domain="+cloudDomain, "-e", "dns_zone="+cloudZone)
		p.require(t)
		assert.Regexp(t, `Remove the record of count.example.org\] \*+\n(.*\n)?changed`, p.Output)
		record("destroy", 0, 0, p.Took, "changed=%d, the data volume stays", p.Changed)
		assert.Empty(t, c.instances(t))
		assert.Empty(t, c.address(t))
		require.Len(t, c.volumes(t, "footfall-data"), 1)
		p = c.ansible(t, "destroy.yml", "-e", "project=footfall", "-e", "domain=count.example.net", "-e", "dns_zone=example.net") // there is no such zone
		p.require(t)
		assert.Zero(t, p.Changed, "%v", p.Tasks)

		ended := make(chan play)
		go func() { ended <- c.ansible(t, "destroy.yml", "-e", "project=footfall", "-e", "destroy_data=true") }()
		c.keep(t, c.volumes(t, "footfall-data")[0].ID, 20*time.Second)
		p = <-ended
		p.require(t)
		assert.Empty(t, c.volumes(t, "footfall-data"))
	})
	ok = ok && t.Run("the least rights", func(t *testing.T) {
		t.Run("provision", func(t *testing.T) { readPolicy(t, "files/provision-policy.json").isLeast(t, needed(t, operatorID)) })
		t.Run("deploy", func(t *testing.T) { readPolicy(t, "files/deploy-policy.json").isLeast(t, needed(t, deployID)) })
		t.Run("host", func(t *testing.T) { readPolicy(t, "templates/host-policy.json").isLeast(t, needed(t, hostID)) })
	})
	require.True(t, ok, "each step needs the one before")
}

// keep has a stranger keep a volume for so long: EC2 lets go of a terminated instance's volume later than the emulator.
func (c *cloud) keep(t *testing.T, id string, long time.Duration) {
	t.Helper()
	var stranger struct {
		ID string `xml:"instancesSet>item>instanceId"`
	}
	require.NoError(t, c.call("RunInstances", url.Values{"ImageId": {newImage}, "MinCount": {"1"}, "MaxCount": {"1"}}, &stranger))
	attachment := url.Values{"VolumeId": {id}, "InstanceId": {stranger.ID}, "Device": {dataSlot}}
	require.NoError(t, c.call("AttachVolume", attachment, nil))
	time.Sleep(long) // the lateness
	assert.Equal(t, stranger.ID, c.volumes(t, "footfall-data")[0].Instance)
	require.NoError(t, c.call("DetachVolume", attachment, nil))
	require.NoError(t, c.call("TerminateInstances", url.Values{"InstanceId.1": {stranger.ID}}, nil))
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
	ID        string `xml:"volumeId"`
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
