//go:build e2e

package e2e

import (
	"encoding/xml"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The page's name, and the zone of Route 53 that has it.
const (
	cloudDomain = "count.example.org"
	cloudZone   = "example.org"
)

// makeZone makes the zone, which is no part of the deployment.
func (c *cloud) makeZone(t *testing.T) {
	t.Helper()
	created, err := c.route53(http.MethodPost, "/hostedzone",
		`<CreateHostedZoneRequest xmlns="https://route53.amazonaws.com/doc/2013-04-01/"><Name>`+cloudZone+`</Name><CallerReference>e2e</CallerReference></CreateHostedZoneRequest>`)
	require.NoError(t, err)
	id := regexp.MustCompile(`<Id>(/hostedzone/\w+)</Id>`).FindStringSubmatch(created)
	require.Len(t, id, 2, created)
	c.zone = id[1]
}

// records are the addresses of the zone's names.
func (c *cloud) records() (map[string]string, error) {
	var answer struct {
		Sets []struct {
			Name, Type string
			Values     []string `xml:"ResourceRecords>ResourceRecord>Value"`
			Alias      string   `xml:"AliasTarget>DNSName"`
		} `xml:"ResourceRecordSets>ResourceRecordSet"`
	}
	text, err := c.route53(http.MethodGet, c.zone+"/rrset", "")
	if err == nil {
		err = xml.Unmarshal([]byte(text), &answer)
	}
	all := map[string]string{}
	for _, s := range answer.Sets {
		if s.Type == "A" {
			all[strings.TrimSuffix(s.Name, ".")] = strings.Join(s.Values, ",")
			if s.Alias != "" && c.balancer != nil {
				all[strings.TrimSuffix(s.Name, ".")] = c.balancer.ip
			}
		}
	}
	return all, err
}

// lead gives the page's name its address, in the files of hosts and the authority's DNS, and leads the elastic address to its
// instance: by a route, since nobody is to reach the real owner of what moto makes up, and by the translation that EC2 does.
func (c *cloud) lead() error {
	records, err := c.records()
	if err != nil {
		return err
	}
	var elastic struct {
		IP       string `xml:"addressesSet>item>publicIp"`
		Instance string `xml:"addressesSet>item>instanceId"`
	}
	if err := c.call("DescribeAddresses", nil, &elastic); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	names := "grep -v ' " + cloudDomain + "$\\|elb.amazonaws.com$' /etc/hosts > /tmp/hosts\n"
	if c.balancer != nil {
		names += "echo '" + c.balancer.ip + " footfall-1." + region + ".elb.amazonaws.com' >> /tmp/hosts\n" // moto's name for it
	}
	if records[cloudDomain] != "" {
		names += "echo '" + records[cloudDomain] + " " + cloudDomain + "' >> /tmp/hosts\n"
	}
	names += "cat /tmp/hosts > /etc/hosts\n"
	route, translation, first := "", "", c.hosts[elastic.Instance]
	if first != nil {
		route = "ip route replace " + elastic.IP + " via " + first.ip + "\n"
		translation = "for chain in OUTPUT PREROUTING; do iptables -t nat -A $chain -d " + elastic.IP + " -j DNAT --to " + first.ip + "; done\n"
	}
	if led := names + route; led != c.led {
		_, inController := docker("exec", controllerName(), "sh", "-ec", names+route)
		_, inAuthority := docker("exec", c.acme.container, "sh", "-ec", route)
		err = errors.Join(inController, inAuthority, c.acme.point(cloudDomain, records[cloudDomain]))
		for _, h := range c.hosts {
			script := names
			if h == first {
				script += translation
			}
			_, failed := h.sh("set -e\n" + script)
			if failed != nil && strings.Contains(failed.Error(), "is not running") {
				failed = nil // a test killed it
			}
			err = errors.Join(err, failed)
		}
		c.led = led
	}
	return err
}

// testRecord corrects the record of the first host's name.
func testRecord(t *testing.T, c *cloud, machines func(*testing.T, ...string) play) {
	settings := []string{"-e", "domain=" + cloudDomain, "-e", "dns_zone=" + cloudZone}
	is := func(want map[string]string) {
		t.Helper()
		records, err := c.records()
		require.NoError(t, err)
		assert.Equal(t, want, records)
	}
	is(map[string]string{cloudDomain: c.address(t)})
	assert.Zero(t, machines(t, settings...).Changed)

	_, err := c.route53(http.MethodPost, c.zone+"/rrset", `<ChangeResourceRecordSetsRequest xmlns="https://route53.amazonaws.com/doc/2013-04-01/"><ChangeBatch><Changes>
		<Change><Action>UPSERT</Action><ResourceRecordSet><Name>`+cloudDomain+`.</Name><Type>A</Type><TTL>60</TTL><ResourceRecords><ResourceRecord><Value>192.0.2.1</Value></ResourceRecord></ResourceRecords></ResourceRecordSet></Change>
		<Change><Action>CREATE</Action><ResourceRecordSet><Name>www.`+cloudZone+`.</Name><Type>A</Type><TTL>60</TTL><ResourceRecords><ResourceRecord><Value>192.0.2.2</Value></ResourceRecord></ResourceRecords></ResourceRecordSet></Change>
		</Changes></ChangeBatch></ChangeResourceRecordSetsRequest>`)
	require.NoError(t, err)
	assert.Len(t, machines(t, append(settings, "--check")...).Tasks, 1)
	p := machines(t, settings...)
	assert.Len(t, p.Tasks, 1)
	assert.NotContains(t, p.Output, "...ignoring", "the controller sees it")
	is(map[string]string{cloudDomain: c.address(t), "www." + cloudZone: "192.0.2.2"})

	p = c.ansible(t, "site.yml", "--tags", "fleet", "-e", "domain=count.example.net", "-e", "dns_zone="+cloudZone)
	assert.Error(t, p.Err)
	assert.Contains(t, p.Output, "it must be the zone that has the domain")
}

// route53 asks the API of Route 53.
func (c *cloud) route53(method, path, body string) (string, error) {
	answer, err := c.request(method, "route53", "text/xml", "", body, "/2013-04-01"+path)
	return string(answer), err
}
