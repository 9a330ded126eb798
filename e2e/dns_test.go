//go:build e2e

package e2e

import (
	"encoding/xml"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testRecord gives the first host's address a name in Route 53, corrects the record, and removes it. The resolver of the
// controller is its file of hosts.
func testRecord(t *testing.T, c *cloud, machines func(*testing.T, ...string) play) {
	const domain, zone = "count.example.org", "example.org"
	created, err := c.route53(http.MethodPost, "/hostedzone",
		`<CreateHostedZoneRequest xmlns="https://route53.amazonaws.com/doc/2013-04-01/"><Name>`+zone+`</Name><CallerReference>e2e</CallerReference></CreateHostedZoneRequest>`)
	require.NoError(t, err)
	id := regexp.MustCompile(`<Id>/hostedzone/(\w+)</Id>`).FindStringSubmatch(created)
	require.Len(t, id, 2, created)
	records := func() (all []string) {
		t.Helper()
		var answer struct {
			Sets []struct {
				Name, Type string
				Values     []string `xml:"ResourceRecords>ResourceRecord>Value"`
			} `xml:"ResourceRecordSets>ResourceRecordSet"`
		}
		text, err := c.route53(http.MethodGet, "/hostedzone/"+id[1]+"/rrset", "")
		require.NoError(t, err)
		require.NoError(t, xml.Unmarshal([]byte(text), &answer))
		for _, s := range answer.Sets {
			if s.Type == "A" {
				all = append(all, s.Name+" "+strings.Join(s.Values, ","))
			}
		}
		return all
	}
	hosts := func(script string) {
		t.Helper()
		_, err := docker("exec", controllerName(), "sh", "-c", script)
		require.NoError(t, err)
	}
	hosts("echo '" + c.address(t) + " " + domain + "' >> /etc/hosts")
	defer hosts("grep -v " + domain + " /etc/hosts > /tmp/hosts; cat /tmp/hosts > /etc/hosts")

	settings := []string{"-e", "domain=" + domain, "-e", "dns_zone=" + zone}
	p := machines(t, settings...)
	assert.Len(t, p.Tasks, 1, "the record alone: %v", p.Tasks)
	assert.NotContains(t, p.Output, "...ignoring", "the controller sees it")
	assert.Equal(t, []string{domain + ". " + c.address(t)}, records())
	assert.Zero(t, machines(t, settings...).Changed)

	_, err = c.route53(http.MethodPost, "/hostedzone/"+id[1]+"/rrset", `<ChangeResourceRecordSetsRequest xmlns="https://route53.amazonaws.com/doc/2013-04-01/"><ChangeBatch><Changes>
		<Change><Action>UPSERT</Action><ResourceRecordSet><Name>`+domain+`.</Name><Type>A</Type><TTL>60</TTL><ResourceRecords><ResourceRecord><Value>192.0.2.1</Value></ResourceRecord></ResourceRecords></ResourceRecordSet></Change>
		<Change><Action>CREATE</Action><ResourceRecordSet><Name>www.`+zone+`.</Name><Type>A</Type><TTL>60</TTL><ResourceRecords><ResourceRecord><Value>192.0.2.2</Value></ResourceRecord></ResourceRecords></ResourceRecordSet></Change>
		</Changes></ChangeBatch></ChangeResourceRecordSetsRequest>`)
	require.NoError(t, err)
	assert.Len(t, machines(t, append(settings, "--check")...).Tasks, 1)
	assert.Len(t, machines(t, settings...).Tasks, 1)
	assert.ElementsMatch(t, []string{domain + ". " + c.address(t), "www." + zone + ". 192.0.2.2"}, records())

	// Not the fleet's operator: the policy has no right to it.
	watcher := c.env("AKIAFOOTFALLE2EWATCH")
	watch := func() play {
		p := tryAnsible(t, watcher, "", "route53-health-check.yml", "-e", "domain="+domain, "-e", "sns_topic=arn:aws:sns:us-east-1:123456789012:away")
		p.require(t)
		return p
	}
	watch()
	assert.Zero(t, watch().Changed)
	checks, err := c.route53(http.MethodGet, "/healthcheck", "")
	require.NoError(t, err)
	assert.Regexp(t, `<Port>443</Port>(?s:.*)<Type>HTTPS</Type>(?s:.*)<ResourcePath>/readyz</ResourcePath>(?s:.*)<FullyQualifiedDomainName>`+domain+`<`, checks)

	p = c.ansible(t, "site.yml", "--tags", "fleet", "-e", "domain=count.example.net", "-e", "dns_zone="+zone)
	assert.Error(t, p.Err)
	assert.Contains(t, p.Output, "want the zone that has the domain")
}

// route53 asks the API of Route 53.
func (c *cloud) route53(method, path, body string) (string, error) {
	answer, err := c.request(method, "route53", "text/xml", "", body, "/2013-04-01"+path)
	return string(answer), err
}
