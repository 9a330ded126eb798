//go:build e2e

package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	region       = "eu-central-1" // as in ansible/inventory/aws_ec2.yml
	debianOwner  = "136693071363" // as in ansible/roles/fleet/vars/main.yml
	oldImage     = "ami-0000000000000000a"
	newImage     = "ami-0000000000000000b"
	foreignImage = "ami-0000000000000000c" // says that it is Debian, and is somebody else's
)

// A cloud is an EC2 API (moto, in the controller) and what moto lacks: an instance that it says is
// running boots, as a test host with the address and the user data of the instance.
type cloud struct {
	endpoint string // of the API, for Ansible in the controller
	reach    string // of the API, for the harness
	network  network

	mu    sync.Mutex
	hosts map[string]*host // by instance id
}

// startCloud starts an empty account.
func startCloud(t *testing.T) *cloud {
	t.Helper()
	setUp(t)
	// moto's default subnet of zone a; its instances get the lowest addresses, the controller a high one.
	c := &cloud{network: newNetwork(t, "172.31.0.0/20", "172.31.15.0/24"), endpoint: "http://127.0.0.1:5000", hosts: map[string]*host{}}
	type image map[string]any
	debian := func(id, owner, name, date string) image {
		return image{"ami_id": id, "owner_id": owner, "name": name, "creation_date": date, "image_location": owner + "/" + name,
			"state": "available", "public": true, "architecture": "x86_64", "image_type": "machine", "platform": nil, "description": "Debian 13",
			"root_device_type": "ebs", "root_device_name": "/dev/xvda", "virtualization_type": "hvm", "hypervisor": "xen", "sriov": "simple"}
	}
	images, err := json.Marshal([]image{
		debian(oldImage, debianOwner, "debian-13-amd64-20250814-2204", "2025-08-14T22:04:00.000Z"),
		debian(newImage, debianOwner, "debian-13-amd64-20251006-2257", "2025-10-06T22:57:00.000Z"),
		debian(foreignImage, "999999999999", "debian-13-amd64-20991231-0000", "2099-12-31T00:00:00.000Z"),
	})
	require.NoError(t, err)
	list := filepath.Join(shared(), "images.json")
	require.NoError(t, os.WriteFile(list, images, 0o600))
	name, err := controller()
	require.NoError(t, err)
	_, err = docker("exec", "--detach", "--workdir", shared(), "--env", "MOTO_AMIS_PATH="+list, name, "sh", "-c", "exec moto_server --host 0.0.0.0 --port 5000 > "+shared()+"/moto.log 2>&1")
	require.NoError(t, err)
	ip, err := docker("inspect", "-f", `{{(index .NetworkSettings.Networks "`+c.network.name+`").IPAddress}}`, name)
	require.NoError(t, err)
	c.reach = "http://" + ip + ":5000"
	eventually(t, time.Minute, "the EC2 API answers", func() error { return c.call("DescribeInstances", nil, nil) })
	_, err = c.post("moto", "", "", "", "/moto-api/recorder/start-recording")
	require.NoError(t, err)

	ctx, stop := context.WithCancel(t.Context())
	var booting sync.WaitGroup
	booting.Go(func() {
		for ctx.Err() == nil {
			if err := c.boot(t); err != nil {
				t.Errorf("boot what the cloud says is running: %v", err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() { stop(); booting.Wait(); c.remove() })
	return c
}

// env is what makes Ansible, its modules and its inventory talk to this cloud.
func (c *cloud) env() environ {
	return environ{"AWS_URL=" + c.endpoint, "AWS_ENDPOINT_URL=" + c.endpoint, "AWS_ACCESS_KEY_ID=AKIAFOOTFALLE2ETEST0",
		"AWS_SECRET_ACCESS_KEY=no-secret-but-long-enough-to-be-one-000"}
}

// ansible runs a playbook against the cloud. The addresses that moto makes up are somebody's real
// ones (and out of the controller's reach): hosts are reached by the private ones.
func (c *cloud) ansible(t *testing.T, playbook string, args ...string) play {
	t.Helper()
	operator, err := key()
	require.NoError(t, err)
	args = append([]string{"--private-key", operator, "-e", "aws_emulated=true", "-e", "ssh_over=private",
		"-e", "ssh_public_key=" + operator + ".pub", "-e", `{"ssh_cidrs": ["192.0.2.0/24"]}`}, args...)
	return tryAnsible(t, c.env(), "", playbook, args...)
}

// call asks the EC2 API and decodes its answer.
func (c *cloud) call(action string, params url.Values, answer any) error {
	form := url.Values{"Action": {action}, "Version": {"2016-11-15"}}
	for k, v := range params {
		form[k] = v
	}
	body, err := c.post("ec2", "application/x-www-form-urlencoded", "", form.Encode(), "/")
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

func (c *cloud) post(service, contentType, target, body, path string) ([]byte, error) {
	req, err := http.NewRequest(http.MethodPost, c.reach+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", harnessAgent)
	req.Header.Set("Content-Type", contentType)
	if target != "" {
		req.Header.Set("X-Amz-Target", target)
	}
	// moto reads region and service here, and checks no signature.
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIAFOOTFALLE2ETEST0/20260101/"+region+"/"+service+"/aws4_request, SignedHeaders=host, Signature=none")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, answer)
	}
	return answer, err
}

// harnessAgent tells the harness's own requests from Ansible's.
const harnessAgent = "footfall-e2e"

// actions are the API's actions that Ansible has asked for, as IAM names them.
func (c *cloud) actions(t *testing.T) []string {
	t.Helper()
	resp, err := http.Get(c.reach + "/moto-api/recorder/download-recording")
	require.NoError(t, err)
	defer resp.Body.Close()
	return recordedActions(t, resp.Body)
}

// recordedActions reads moto's recording, one JSON object a request.
func recordedActions(t *testing.T, recording io.Reader) []string {
	t.Helper()
	asked := map[string]bool{}
	for lines := json.NewDecoder(recording); lines.More(); {
		var request struct {
			Headers map[string]string
			Body    string
			Encoded bool `json:"body_encoded"` // in base64
		}
		require.NoError(t, lines.Decode(&request))
		if request.Headers["User-Agent"] == harnessAgent {
			continue
		}
		text := request.Body
		if request.Encoded {
			decoded, err := base64.StdEncoding.DecodeString(text)
			require.NoError(t, err)
			text = string(decoded)
		}
		form, err := url.ParseQuery(text)
		require.NoError(t, err)
		credential := strings.Split(request.Headers["Authorization"], "/")
		require.Greater(t, len(credential), 3, "%v", request.Headers)
		action := form.Get("Action")
		if target := request.Headers["X-Amz-Target"]; target != "" {
			_, action, _ = strings.Cut(target, ".")
		}
		asked[credential[3]+":"+action] = true
	}
	return slices.Sorted(maps.Keys(asked))
}

// An instance is what DescribeInstances says of one.
type instance struct {
	ID     string `xml:"instanceId"`
	Image  string `xml:"imageId"`
	State  string `xml:"instanceState>name"`
	IP     string `xml:"privateIpAddress"`
	Public string `xml:"ipAddress"`
	Groups []struct {
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
			c.mu.Lock()
			c.hosts[i.ID] = h
			c.mu.Unlock()
		case h != nil && i.State == "terminated":
			docker("rm", "-f", "-v", h.container)
			c.mu.Lock()
			delete(c.hosts, i.ID)
			c.mu.Unlock()
		}
	}
	return nil
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

// remove takes away the hosts and the network, and empties the account.
func (c *cloud) remove() {
	c.post("moto", "", "", "", "/moto-api/reset")
	f := fleet{network: c.network}
	for _, h := range c.hosts {
		f.hosts = append(f.hosts, h)
	}
	f.remove()
}
