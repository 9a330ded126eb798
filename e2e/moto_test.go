//go:build e2e

package e2e

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
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

// The access keys of requests say whose they are: an operator's, a deployment's, a host's; the harness has another.
const (
	operatorID = "AKIAFOOTFALLE2EOPERATOR0"
	deployID   = "AKIAFOOTFALLE2EDEPLOY000"
	hostID     = "host"
	// Asks for what is not in the policies.
	administratorID = "AKIAFOOTFALLE2EADMIN0000"
)

// authorization is the header from which moto takes where a request of the harness goes, "region/service"; it
// checks no signature.
func authorization(scope string) string {
	return "AWS4-HMAC-SHA256 Credential=harness/20260101/" + scope + "/aws4_request, SignedHeaders=host, Signature=none"
}
