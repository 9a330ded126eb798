//go:build e2e

package e2e

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net"
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
	dataSlot     = "/dev/sdf"     // likewise
	oldImage     = "ami-0000000000000000a"
	newImage     = "ami-0000000000000000b"
	foreignImage = "ami-0000000000000000c" // says that it is Debian, and is somebody else's
)

// motoPort is where moto answers, in the controller.
const motoPort = "5000"

// moto starts (once) the emulator of AWS in the controller. Its accounts are empty.
var moto = sync.OnceValue(func() error {
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
	if err != nil {
		return err
	}
	list := filepath.Join(shared(), "images.json")
	if err := os.WriteFile(list, images, 0o600); err != nil {
		return err
	}
	name, err := controller()
	if err != nil {
		return err
	}
	_, err = docker("exec", "--detach", "--workdir", shared(), "--env", "MOTO_AMIS_PATH="+list, name, "sh", "-c",
		"exec python3 "+repoDir()+"/e2e/emulator.py --host 0.0.0.0 --port "+motoPort+" > "+shared()+"/moto.log 2>&1")
	return err
})

// motoIn is moto's address in a network that the controller has joined.
func motoIn(t *testing.T, n network) string {
	t.Helper()
	require.NoError(t, moto())
	endpoint := "http://" + net.JoinHostPort(addressIn(t, n), motoPort)
	eventually(t, time.Minute, "the emulator of AWS answers", func() error {
		resp, err := http.Get(endpoint + "/moto-api/data.json")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	return endpoint
}

// operatorID is the access key of Ansible's requests, which distinguishes them from the harness's and the hosts'.
const operatorID = "AKIAFOOTFALLE2ETEST0"

// authorization is the header from which moto takes where a request of the harness goes, "region/service"; it
// checks no signature.
func authorization(scope string) string {
	return "AWS4-HMAC-SHA256 Credential=harness/20260101/" + scope + "/aws4_request, SignedHeaders=host, Signature=none"
}

// actions are the API's actions that Ansible has asked for, as IAM names them.
func (c *cloud) actions(t *testing.T) []string {
	t.Helper()
	resp, err := http.Get(c.reach + "/moto-api/recorder/download-recording")
	require.NoError(t, err)
	defer resp.Body.Close()
	return recordedActions(t, resp.Body)
}

// s3Action is what IAM calls a request about a bucket, from Amazon's Service Authorization Reference.
func s3Action(t *testing.T, method, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	name, ok := map[string]string{"accelerate": "AccelerateConfiguration", "acl": "BucketAcl", "encryption": "EncryptionConfiguration",
		"inventory": "InventoryConfiguration", "lifecycle": "LifecycleConfiguration", "object-lock": "BucketObjectLockConfiguration",
		"ownershipControls": "BucketOwnershipControls", "policy": "BucketPolicy", "publicAccessBlock": "BucketPublicAccessBlock",
		"requestPayment": "BucketRequestPayment", "tagging": "BucketTagging", "versioning": "BucketVersioning"}[u.RawQuery]
	switch {
	case ok && method == http.MethodGet:
		return "Get" + name
	case ok && method == http.MethodPut:
		return "Put" + name
	case method == http.MethodHead:
		return "ListBucket"
	}
	require.Equal(t, http.MethodPut, method, address)
	return "CreateBucket"
}

// route53Action is what IAM calls a request about a zone, likewise.
func route53Action(t *testing.T, method, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	switch path := strings.Trim(strings.TrimPrefix(u.Path, "/2013-04-01"), "/"); {
	case path == "hostedzone":
		return "ListHostedZones"
	case strings.HasPrefix(path, "change/"):
		return "GetChange"
	case method == http.MethodPost:
		return "ChangeResourceRecordSets"
	}
	return "ListResourceRecordSets"
}

// recordedActions reads moto's recording, one JSON object a request.
func recordedActions(t *testing.T, recording io.Reader) []string {
	t.Helper()
	asked := map[string]bool{}
	for lines := json.NewDecoder(recording); lines.More(); {
		var request struct {
			Method  string
			URL     string
			Headers map[string]string
			Body    string
			Encoded bool `json:"body_encoded"` // in base64
		}
		require.NoError(t, lines.Decode(&request))
		if !strings.Contains(request.Headers["Authorization"], "Credential="+operatorID+"/") {
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
		if credential[3] == "s3" {
			action = s3Action(t, request.Method, request.URL)
		}
		if credential[3] == "route53" {
			action = route53Action(t, request.Method, request.URL)
		}
		if target := request.Headers["X-Amz-Target"]; target != "" {
			_, action, _ = strings.Cut(target, ".")
		}
		asked[credential[3]+":"+action] = true
	}
	return slices.Sorted(maps.Keys(asked))
}
