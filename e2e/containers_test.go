//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// composeLabel is Compose's own mark on what it makes.
const composeLabel = "com.docker.compose.project"

// TestContainers runs the Dockerfile and compose.yaml as they are in the repository.
func TestContainers(t *testing.T) {
	setUp(t)
	name, err := controller()
	require.NoError(t, err)
	project := "footfall-e2e-" + pid
	port := freePort(t)
	compose := func(args ...string) (string, error) {
		return docker(append([]string{"exec", "--env", "PORT=" + port, "--env", "USER_NAME=e2e", name,
			"docker", "compose", "--project-name", project, "--progress", "plain"}, args...)...)
	}
	atEnd(func() { remove(composeLabel + "=" + project) })
	t.Cleanup(func() { remove(composeLabel + "=" + project) })

	begin := time.Now()
	require.NoError(t, step("docker compose up --build", func() error {
		_, err := compose("up", "--build", "--detach", "--wait")
		return err
	}))
	record("docker compose up --build", 0, 0, time.Since(begin), "image and database's first start")
	app, db := project+"-app-1", project+"-db-1"

	var image struct {
		Size   int64
		Config struct {
			User        string
			Healthcheck struct{ Test []string }
		}
	}
	inspect(t, "image", &image, "footfall:latest")
	assert.Less(t, image.Size, int64(15_000_000), "bytes of image")
	assert.Equal(t, "65532:65532", image.Config.User)
	assert.Equal(t, []string{"CMD", "/footfall", "healthcheck"}, image.Config.Healthcheck.Test)

	var c struct {
		State struct {
			Pid      int
			ExitCode int
			Status   string
			Health   struct{ Status string }
		}
		Config     struct{ Env []string }
		HostConfig struct{ Memory int64 }
	}
	inspect(t, "container", &c, app)
	assert.Equal(t, "healthy", c.State.Health.Status)
	assert.NotZero(t, c.HostConfig.Memory)
	assert.NotContains(t, strings.Join(c.Config.Env, "\n"), "postgres://")
	// What the kernel says of the process, not what was asked for.
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.State.Pid))
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^Uid:\t65532\t65532\t65532\t65532$`, string(status))
	assert.Regexp(t, `(?m)^CapBnd:\t0+$`, string(status))
	assert.Regexp(t, `(?m)^NoNewPrivs:\t1$`, string(status))
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", c.State.Pid))
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^\S+ / overlay ro,`, string(mounts))

	// Two containers with an address each, one client through the published port.
	visit := func(client string, headers ...string) {
		args := []string{"exec", client, "curl", "-sSf", "-o", "/dev/null"}
		for _, h := range headers {
			args = append(args, "-H", h)
		}
		_, err := docker(append(args, "http://app:8080/")...)
		require.NoError(t, err)
	}
	clients := []string{project + "-client-1", project + "-client-2"}
	for _, client := range clients {
		_, err := docker("run", "--detach", "--init", "--name", client, "--label", label+"="+pid, "--label", composeLabel+"="+project,
			"--network", project+"_default", controllerImage)
		require.NoError(t, err)
	}
	visit(clients[0])
	visit(clients[1])
	visit(clients[1], "X-Forwarded-For: 192.0.2.77") // not through a trusted proxy: not believed
	_, err = sh("curl", "-sSf", "-o", "/dev/null", "http://127.0.0.1:"+port+"/")
	require.NoError(t, err)
	counted := func() (visits, visitors int) {
		text, err := sh("curl", "-sSf", "http://127.0.0.1:"+port+"/api/stats")
		require.NoError(t, err)
		var stats struct{ Visits, Visitors int }
		require.NoError(t, json.Unmarshal([]byte(text), &stats))
		return stats.Visits, stats.Visitors
	}
	visits, visitors := counted()
	assert.Equal(t, 4, visits)
	assert.Equal(t, 3, visitors, "two containers, and Docker's gateway for the published port")

	// Health follows the database, both ways.
	health := func(want string) time.Duration {
		begin := time.Now()
		eventually(t, 90*time.Second, "the app becomes "+want, func() error {
			inspect(t, "container", &c, app)
			if c.State.Health.Status != want {
				return fmt.Errorf("it is %s", c.State.Health.Status)
			}
			return nil
		})
		return time.Since(begin)
	}
	_, err = docker("stop", db)
	require.NoError(t, err)
	record("container called unhealthy without its database", 0, 0, health("unhealthy"), "")
	_, err = docker("start", db)
	require.NoError(t, err)
	record("container healthy again", 0, 0, health("healthy"), "")

	logs, err := docker("logs", app)
	require.NoError(t, err)
	assert.NotContains(t, logs, "postgres://")
	_, err = docker("stop", app)
	require.NoError(t, err)
	inspect(t, "container", &c, app)
	assert.Equal(t, "exited", c.State.Status)
	assert.Zero(t, c.State.ExitCode)

	// Made again, from the volumes alone.
	_, err = compose("down")
	require.NoError(t, err)
	_, err = compose("up", "--detach", "--wait")
	require.NoError(t, err)
	visits, visitors = counted()
	assert.Equal(t, []int{4, 3}, []int{visits, visitors})
}

func inspect(t *testing.T, kind string, into any, name string) {
	t.Helper()
	text, err := docker(kind, "inspect", "-f", "{{json .}}", name)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(text), into))
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}
