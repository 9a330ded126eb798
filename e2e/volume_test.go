//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// A device is a data volume: a loop device, and the host that has it.
type device struct {
	loop string // /dev/loopN
	file string // behind it
	host *host
}

// attach gives each data volume to the host of the instance that the cloud says it is attached to, under the
// name that the host would know it by, https://docs.aws.amazon.com/ebs/latest/userguide/nvme-ebs-volumes.html.
func (c *cloud) attach() error {
	var answer struct {
		Volumes []struct {
			ID       string `xml:"volumeId"`
			Instance string `xml:"attachmentSet>item>instanceId"`
			Slot     string `xml:"attachmentSet>item>device"`
		} `xml:"volumeSet>item"`
	}
	if err := c.call("DescribeVolumes", nil, &answer); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range answer.Volumes {
		h, d := c.hosts[v.Instance], c.devices[v.ID]
		if v.Slot != dataSlot || h == nil || d != nil && d.host == h {
			continue
		}
		if d == nil {
			var err error
			if d, err = newDevice(v.ID, 2<<30); err != nil {
				return err
			}
			c.devices[v.ID] = d
		}
		number := strings.TrimPrefix(d.loop, "/dev/loop")
		link := "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_" + strings.ReplaceAll(v.ID, "-", "")
		if _, err := h.sh("mknod /dev/nvme1n1 b 7 " + number + " && mkdir -p /dev/disk/by-id && ln -s /dev/nvme1n1 " + link); err != nil {
			return fmt.Errorf("attach %s to %s: %w", v.ID, h.name, err)
		}
		d.host = h
	}
	return nil
}

// newDevice makes a blank disk. It is gone at the end of the run, or at the begin of the next (sweepDevices).
func newDevice(id string, size int64) (*device, error) {
	path := filepath.Join(os.TempDir(), devicePrefix+pid+"-"+id)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(path, size); err != nil { // sparse
		return nil, err
	}
	loop, err := sh("losetup", "--find", "--show", path)
	if err != nil {
		return nil, err
	}
	atEnd(func() { sh("losetup", "--detach", loop); os.Remove(path) })
	return &device{loop: loop, file: path}, nil
}

const devicePrefix = "footfall-e2e-volume-"

// sweepDevices removes the disks of runs that were killed before they could.
func sweepDevices() {
	paths, _ := filepath.Glob(filepath.Join(os.TempDir(), devicePrefix+"*"))
	for _, path := range paths {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(path), devicePrefix), "-")
		if alive(owner) {
			continue
		}
		loops, _ := sh("losetup", "--noheadings", "--output", "NAME", "--associated", path)
		for _, loop := range strings.Fields(loops) {
			sh("losetup", "--detach", loop)
		}
		os.Remove(path)
	}
}
