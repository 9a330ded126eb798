//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A cloud is an EC2 API (moto, in the controller) and what moto lacks: an instance that it says is
// running boots, as a test host with the address and the user data of the instance, a data volume that
// it says is attached becomes a device of that host, over a file that outlives it, and names of its zone and the
// elastic address lead where it says, for the hosts, the controller and a certificate authority.
type cloud struct {
	endpoint string // of the API, for Ansible in the controller
	reach    string // of the API, for the harness
	network  network
	bucket   *bucket
	acme     acme
	zone     string       // path of the zone in Route 53
	led      string       // how names and addresses lead, a script for the controller
	metadata string       // host:port of the metadata service, for the hosts
	from     atomic.Value // string, the address that the controller's runs come from
	names    *resolver    // of the managed database, for the hosts; nil: they ask this machine's
	truth    []byte       // the authority of what answers for Amazon's own names, PEM

	mu      sync.Mutex
	hosts   map[string]*host   // by instance id
	devices map[string]*device // by volume id
	pair    *pair              // of the managed database
	// nil: visitors reach the hosts themselves
	balancer *balancer
}

// startCloud starts an empty account, once in a run.
func startCloud(t *testing.T) *cloud {
	t.Helper()
	setUp(t)
	// moto's default subnets of all zones; instances get the lowest addresses of each, the controller a high one.
	c := &cloud{network: newNetwork(t, "172.31.0.0/16", "172.31.255.0/24"), endpoint: "http://127.0.0.1:" + motoPort,
		hosts: map[string]*host{}, devices: map[string]*device{}}
	c.reach = motoIn(t, c.network)
	c.bucket = startS3(t, c.network)
	c.startMetadata(t)
	c.from.Store("203.0.113.7")
	c.startAmazon(t)
	c.acme = startACME(t, c.network, "172.31.255.250")
	c.makeZone(t)

	ctx, stop := context.WithCancel(t.Context())
	var booting sync.WaitGroup
	booting.Go(func() {
		for ctx.Err() == nil {
			if err := errors.Join(c.boot(t), c.attach(), c.lead(), c.supply(t)); err != nil {
				t.Errorf("boot what the cloud says is running: %v", err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	})
	t.Cleanup(func() { stop(); booting.Wait(); c.remove() })
	return c
}

// env is what makes Ansible, its modules and its inventory talk to this cloud, with an access key.
func (c *cloud) env(accessKey string) environ {
	return environ{"AWS_URL=" + c.endpoint, "AWS_ENDPOINT_URL=" + c.endpoint, "AWS_ACCESS_KEY_ID=" + accessKey,
		"AWS_SECRET_ACCESS_KEY=no-secret-but-long-enough-to-be-one-000"}
}

// ansible runs a playbook against the cloud, as the operator.
func (c *cloud) ansible(t *testing.T, playbook string, args ...string) play {
	t.Helper()
	return c.ansibleAs(t, operatorID, playbook, args...)
}

// ansibleAs is ansible with an access key. The addresses that moto makes up are somebody's real
// ones (and out of the controller's reach): hosts are reached by the private ones.
func (c *cloud) ansibleAs(t *testing.T, accessKey, playbook string, args ...string) play {
	t.Helper()
	operator, err := key()
	require.NoError(t, err)
	args = append([]string{"--private-key", operator, "-e", `{"ansible_host": "{{ ec2_private_ip_address | default('127.0.0.1') }}"}`,
		"-e", "ssh_public_key=" + operator + ".pub", "-e", `{"ssh_cidrs": ["192.0.2.0/24"]}`}, args...)
	p := tryAnsible(t, c.env(accessKey), "", playbook, args...)
	eventually(t, 10*time.Second, "the run is let in no more", func() error {
		rules, err := c.letIn()
		if said, ok := rules[c.from.Load().(string)+"/32"]; ok {
			err = fmt.Errorf("the rule is there: %s", said)
		}
		return err
	})
	return p
}

// letIn is from where the operators' group opens SSH, with the rules' descriptions.
func (c *cloud) letIn() (map[string]string, error) {
	var answer struct {
		Groups []struct {
			Name  string `xml:"groupName"`
			Rules []struct {
				Port   int `xml:"fromPort"`
				Ranges []struct {
					CIDR        string `xml:"cidrIp"`
					Description string `xml:"description"`
				} `xml:"ipRanges>item"`
			} `xml:"ipPermissions>item"`
		} `xml:"securityGroupInfo>item"`
	}
	err := c.call("DescribeSecurityGroups", nil, &answer)
	rules := map[string]string{}
	for _, g := range answer.Groups {
		if g.Name != "footfall-operators" {
			continue
		}
		for _, rule := range g.Rules {
			for _, r := range rule.Ranges {
				rules[r.CIDR] = r.Description
			}
		}
	}
	return rules, err
}

// startAmazon answers for checkip.amazonaws.com, which the controller asks, and for what the hosts ask: the managed
// database's certificates, and the APIs that say how it is; by TLS.
func (c *cloud) startAmazon(t *testing.T) {
	t.Helper()
	const checkip, truststore = "checkip.amazonaws.com", "truststore.pki.rds.amazonaws.com"
	apis := []string{"rds." + region + ".amazonaws.com", "monitoring." + region + ".amazonaws.com"}
	certificate, authority := selfSigned(t, append(apis, checkip, truststore)...)
	c.truth = authority
	file := filepath.Join(shared(), "amazon.pem")
	require.NoError(t, os.WriteFile(file, authority, 0o600))
	listener, err := tls.Listen("tcp", net.JoinHostPort(c.network.addr(1), "443"), &tls.Config{Certificates: []tls.Certificate{certificate}})
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc(checkip+"/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, c.from.Load()) })
	mux.HandleFunc(truststore+"/"+region+"/"+region+"-bundle.pem", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, filepath.Join(c.pair.dir, "crt"))
	})
	emulator, err := url.Parse(c.reach)
	require.NoError(t, err)
	for _, api := range apis {
		mux.Handle(api+"/", httputil.NewSingleHostReverseProxy(emulator))
	}
	server := &http.Server{Handler: mux}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	_, err = docker("exec", controllerName(), "sh", "-c", "echo "+c.network.addr(1)+" "+checkip+" >> /etc/hosts; cp "+file+" /usr/local/share/ca-certificates/amazon.crt && update-ca-certificates")
	require.NoError(t, err)
}

// call asks the EC2 API and decodes its answer.
func (c *cloud) call(action string, params url.Values, answer any) error {
	return c.query("ec2", "2016-11-15", action, params, answer)
}

// query asks an API that takes forms, of a version, and decodes its answer.
func (c *cloud) query(service, version, action string, params url.Values, answer any) error {
	form := url.Values{"Action": {action}, "Version": {version}}
	maps.Copy(form, params)
	body, err := c.post(service, "application/x-www-form-urlencoded", "", form.Encode(), "/")
	if err != nil {
		return fmt.Errorf("%s: %w", action, err)
	}
	if answer == nil {
		return nil
	}
	return xml.Unmarshal(body, answer)
}

// putParameter sets an SSM parameter: the name of the newest image.
func (c *cloud) putParameter(t *testing.T, name, value string) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"Name": name, "Value": value, "Type": "String", "Overwrite": true})
	require.NoError(t, err)
	_, err = c.post("ssm", "application/x-amz-json-1.1", "AmazonSSM.PutParameter", string(body), "/")
	require.NoError(t, err)
}

// parameter reads an SSM parameter.
func (c *cloud) parameter(name string) (string, error) {
	body, err := c.post("ssm", "application/x-amz-json-1.1", "AmazonSSM.GetParameter", `{"WithDecryption": true, "Name": "`+name+`"}`, "/")
	var answer struct{ Parameter struct{ Value string } }
	if err == nil {
		err = json.Unmarshal(body, &answer)
	}
	return answer.Parameter.Value, err
}

func (c *cloud) post(service, contentType, target, body, path string) ([]byte, error) {
	return c.request(http.MethodPost, service, contentType, target, body, path)
}

func (c *cloud) request(method, service, contentType, target, body, path string) ([]byte, error) {
	req, err := http.NewRequest(method, c.reach+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", contentType)
	if target != "" {
		req.Header.Set("X-Amz-Target", target)
	}
	req.Header.Set("Authorization", authorization(region+"/"+service))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, answer)
	}
	return answer, err
}

// An instance is what DescribeInstances says of one.
type instance struct {
	ID      string `xml:"instanceId"`
	Image   string `xml:"imageId"`
	Type    string `xml:"instanceType"`
	State   string `xml:"instanceState>name"`
	IP      string `xml:"privateIpAddress"`
	Public  string `xml:"ipAddress"`
	Profile string `xml:"iamInstanceProfile>arn"`
	Tokens  string `xml:"metadataOptions>httpTokens"`
	Zone    string `xml:"placement>availabilityZone"`
	Groups  []struct {
		Name string `xml:"groupName"`
	} `xml:"groupSet>item"`
	Tags []struct {
		Key   string `xml:"key"`
		Value string `xml:"value"`
	} `xml:"tagSet>item"`
}

func (i instance) tag(key string) string {
	for _, t := range i.Tags {
		if t.Key == key {
			return t.Value
		}
	}
	return ""
}

// instances are those that are not terminated, by name.
func (c *cloud) instances(t *testing.T) map[string]instance {
	t.Helper()
	all, err := c.describe()
	require.NoError(t, err)
	running := map[string]instance{}
	for _, i := range all {
		if i.State != "terminated" {
			require.NotContains(t, running, i.tag("Name"), "two instances of one name")
			running[i.tag("Name")] = i
		}
	}
	return running
}

func (c *cloud) describe() ([]instance, error) {
	var answer struct {
		Instances []instance `xml:"reservationSet>item>instancesSet>item"`
	}
	err := c.call("DescribeInstances", nil, &answer)
	return answer.Instances, err
}

// host is the running host of a name.
func (c *cloud) host(t *testing.T, name string) *host {
	t.Helper()
	i, ok := c.instances(t)[name]
	require.True(t, ok, "the cloud has no %s", name)
	c.mu.Lock()
	defer c.mu.Unlock()
	require.Contains(t, c.hosts, i.ID, "%s has not booted", name)
	return c.hosts[i.ID]
}

// boot starts a host for each new instance and removes those of terminated ones.
func (c *cloud) boot(t *testing.T) error {
	all, err := c.describe()
	if err != nil {
		return err
	}
	for _, i := range all {
		c.mu.Lock()
		h := c.hosts[i.ID]
		c.mu.Unlock()
		switch {
		case h == nil && i.State == "running" && i.tag("Name") != "":
			hostKey, err := c.hostKey(i.ID)
			if err != nil {
				return err
			}
			h = bootHost(t, c.network, i.tag("Name"), i.IP, hostKey)
			// host-init writes /etc/hosts, then becomes systemd.
			_, err = h.sh("until grep -qx 'systemd\\|init' /proc/1/comm; do sleep 0.1; done; iptables -t nat -A OUTPUT -d 169.254.169.254 -p tcp --dport 80 -j DNAT --to " + c.metadata + "\n" +
				c.resolving() + c.leading() + "cat > /usr/local/share/ca-certificates/amazon.crt <<'PEM'\n" + string(c.truth) + "PEM")
			if err = errors.Join(err, c.bucket.introduce(h), c.acme.introduce(h)); err != nil {
				return err
			}
			c.mu.Lock()
			c.hosts[i.ID] = h
			c.mu.Unlock()
			c.led = "" // this host does not know it yet
		case h != nil && i.State == "terminated":
			h.sh("systemctl stop nginx") // EC2 shuts the system down
			docker("rm", "-f", "-v", h.container)
			c.mu.Lock()
			delete(c.hosts, i.ID)
			c.mu.Unlock()
		}
	}
	return nil
}

// startMetadata answers the hosts as the metadata service of EC2 does, by tokens alone: which role an instance has, and
// keys for it (moto's knows no tokens), https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html.
func (c *cloud) startMetadata(t *testing.T) {
	t.Helper()
	const role = "footfall-backup" // as in ansible/roles/fleet/vars/main.yml
	listener, err := net.Listen("tcp", net.JoinHostPort(c.network.addr(1), "0"))
	require.NoError(t, err)
	c.metadata = listener.Addr().String()
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /latest/api/token", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "token") })
	credentials := func(w http.ResponseWriter, r *http.Request) {
		peer, _, _ := net.SplitHostPort(r.RemoteAddr)
		all, err := c.describe()
		mine := slices.ContainsFunc(all, func(i instance) bool {
			return i.IP == peer && i.State == "running" && strings.HasSuffix(i.Profile, "/"+role)
		})
		switch {
		case r.Header.Get("X-aws-ec2-metadata-token") != "token":
			http.Error(w, "a token must come with it", http.StatusUnauthorized)
		case err != nil || !mine:
			http.Error(w, "no role", http.StatusNotFound)
		case r.PathValue("role") == "":
			fmt.Fprint(w, role)
		default:
			json.NewEncoder(w).Encode(map[string]string{"Code": "Success", "AccessKeyId": hostID, "SecretAccessKey": "no-secret",
				"Token": "session", "Expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)})
		}
	}
	// pgBackRest asks without a slash at the end; the real service answers both.
	mux.HandleFunc("GET /latest/meta-data/iam/security-credentials", credentials)
	mux.HandleFunc("GET /latest/meta-data/iam/security-credentials/{role...}", credentials)
	server := &http.Server{Handler: mux}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
}

// hostKey reads the SSH host key out of the instance's user data as cloud-init would.
func (c *cloud) hostKey(id string) ([]byte, error) {
	var answer struct {
		Value string `xml:"userData>value"`
	}
	if err := c.call("DescribeInstanceAttribute", url.Values{"InstanceId": {id}, "Attribute": {"userData"}}, &answer); err != nil {
		return nil, err
	}
	text, err := base64.StdEncoding.DecodeString(answer.Value)
	if err != nil {
		return nil, err
	}
	// cloud-init ignores user data whose first line is anything but exactly this.
	data, ok := strings.CutPrefix(string(text), "#cloud-config\n")
	if !ok {
		return nil, fmt.Errorf("user data of %s is no cloud-config: it begins with %.20q", id, text)
	}
	_, key, ok := strings.Cut(data, "\nssh_keys:\n  ed25519_private: |\n")
	if !ok {
		return nil, fmt.Errorf("user data of %s has no ssh_keys", id)
	}
	var lines strings.Builder
	for line := range strings.Lines(key) {
		line, ok := strings.CutPrefix(line, "    ")
		if !ok {
			break
		}
		lines.WriteString(line)
	}
	return []byte(lines.String()), nil
}

// remove removes the hosts and the network.
func (c *cloud) remove() {
	f := fleet{network: c.network}
	if c.pair != nil {
		c.pair.remove()
	}
	for _, h := range c.hosts {
		f.hosts = append(f.hosts, h)
	}
	f.remove()
}
