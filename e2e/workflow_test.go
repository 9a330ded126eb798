//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testWorkflow runs deploy.yml, the workflow, with act: from this machine, which is none of the hosts, reaches them by SSH with the
// workflow's secrets, and need have no Ansible. The hosts have the image already, there is no registry; act copies the
// repository itself instead of actions/checkout.
func testWorkflow(t *testing.T, s *service) {
	const repository, version = "example/footfall", "99.8.0"
	variant(t, version, func(string) {})
	released := "ghcr.io/" + repository + ":" + version
	_, err := docker("tag", appImage()+":"+version, released)
	require.NoError(t, err)
	defer docker("rmi", released)
	for _, h := range s.hosts {
		_, err := sh("sh", "-c", "docker save "+released+" | docker exec -i "+h.container+" docker load")
		require.NoError(t, err)
	}

	home, dir := t.TempDir(), t.TempDir()
	write := func(path, text string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	_, err = sh("sh", "-ec", "git clone --quiet "+repoDir()+" "+dir+" && cd "+dir+" && git remote set-url origin https://github.com/"+repository)
	require.NoError(t, err)
	var hosts, known strings.Builder
	for _, h := range s.hosts {
		fmt.Fprintf(&hosts, "    %s: {ansible_host: %s}\n", h.name, h.ip)
		fmt.Fprintf(&known, "%s %s\n", h.ip, h.hostKey)
	}
	write(dir+"/ansible/inventory/static.yml", "footfall:\n  vars: {ansible_user: admin}\n  hosts:\n"+hosts.String()+
		"all:\n  hosts:\n    localhost: {ansible_connection: local, provision: false}\n")
	// Instead of the action that asks AWS for short-lived keys.
	write(home+"/credentials/action.yml", `name: credentials
description: stand-in
inputs:
  role-to-assume: {required: true}
  aws-region: {required: true}
runs:
  using: composite
  steps: [{shell: bash, run: "echo role ${{ inputs.role-to-assume }} in ${{ inputs.aws-region }}"}]
`)
	workflow, err := os.ReadFile(filepath.Join(repoDir(), ".github", "workflows", "deploy.yml"))
	require.NoError(t, err)
	makefile, err := os.ReadFile(filepath.Join(repoDir(), "Makefile"))
	require.NoError(t, err)
	credentials := regexp.MustCompile(`aws-actions/configure-aws-credentials@[0-9a-f]+`).Find(workflow)
	tool := regexp.MustCompile(`(?m)^ACT .*go run (\S+)@(\S+)$`).FindSubmatch(makefile)
	require.NotNil(t, tool)
	operator, err := key()
	require.NoError(t, err)
	private, err := os.ReadFile(operator)
	require.NoError(t, err)
	require.NoError(t, step("act", func() error {
		_, err := sh("env", "GOBIN="+home, "go", "install", string(tool[1])+"@"+string(tool[2]))
		return err
	}))

	before := s.totals(t)
	l := startLoad(t, s.url("/"), 8, 20*time.Millisecond)
	begin := time.Now()
	cmd := exec.CommandContext(t.Context(), home+"/act", "workflow_dispatch", "--workflows", ".github/workflows/deploy.yml", "--input", "version="+version,
		"--platform", "ubuntu-24.04=-self-hosted", "--use-gitignore=false", "--local-repository", string(credentials)+"="+home+"/credentials",
		"--var", "AWS_ROLE_ARN=arn:aws:iam::123456789012:role/deploy", "--var", "AWS_REGION=eu-central-1", "--secret", "GITHUB_TOKEN=none", "--secret", "DEPLOY_SSH_KEY", "--secret", "DEPLOY_KNOWN_HOSTS")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+home, "DEPLOY_SSH_KEY="+string(private), "DEPLOY_KNOWN_HOSTS="+known.String())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	took := time.Since(begin)
	r := l.finish()
	require.NoError(t, os.WriteFile(logFile(t), out.Bytes(), 0o644))
	require.NoError(t, err, tail(out.String(), 60))
	record("deploy.yml, the workflow, from a runner outside of the group", r.Requests, r.Failed, took, "")
	assert.Equal(t, []string{version, version}, s.running(t))
	assert.Zero(t, r.Failed, "%s", r)
	assert.Equal(t, before.Visits+r.Counted, s.totals(t).Visits, "each answered visit is counted once")
	assert.Contains(t, out.String(), "role arn:aws:iam::123456789012:role/deploy in eu-central-1")
	for line := range strings.Lines(string(private)) {
		assert.NotContains(t, out.String(), strings.TrimSpace(line))
	}
	s.deploy(t, s.version).require(t)
}
