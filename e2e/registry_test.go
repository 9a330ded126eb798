//go:build e2e

package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testRegistry deploys from a registry (Debian's, on the second host) that asks for a password, which is then nowhere.
func testRegistry(t *testing.T, s *service) {
	const user, password = "reader", "e2e-Registry-Passw0rd"
	keeper := s.hosts[1]
	registry := keeper.ip + ":5000"
	keeper.must(t, fmt.Sprintf(`export DEBIAN_FRONTEND=noninteractive
		apt-get -q update && apt-get -q -y install --no-install-recommends docker-registry apache2-utils openssl
		openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=registry -addext subjectAltName=IP:%[1]s \
			-keyout /etc/docker/registry/key.pem -out /etc/docker/registry/cert.pem
		htpasswd -Bbn %[2]s %[3]s > /etc/docker/registry/users
		chown -R docker-registry /etc/docker/registry
		cat > /etc/docker/registry/config.yml <<END
version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/docker-registry}}
http: {addr: ":5000", tls: {certificate: /etc/docker/registry/cert.pem, key: /etc/docker/registry/key.pem}}
auth: {htpasswd: {realm: e2e, path: /etc/docker/registry/users}}
END
		systemctl restart docker-registry`, keeper.ip, user, password))
	certificate := keeper.must(t, "cat /etc/docker/registry/cert.pem")
	for _, h := range s.hosts {
		// Docker reads its certs.d at each pull. The wrapper notes the arguments, which everyone can read in ps.
		h.must(t, "mkdir -p /etc/docker/certs.d/"+registry+" && cat > /etc/docker/certs.d/"+registry+"/ca.crt <<'END'\n"+certificate+"\nEND\n"+
			`printf '#!/bin/sh\necho "$*" >> /run/e2e-arguments\nexec /usr/bin/docker "$@"\n' > /usr/local/bin/docker && chmod 755 /usr/local/bin/docker`)
		defer h.must(t, "rm -f /usr/local/bin/docker /run/e2e-arguments")
	}
	eventually(t, time.Minute, "the registry answers", func() error {
		_, err := keeper.sh("curl -sf -k -u " + user + ":" + password + " https://" + registry + "/v2/")
		return err
	})
	keeper.must(t, fmt.Sprintf(`export DOCKER_CONFIG=/run/e2e-push
		echo %s | docker login -u %s --password-stdin %s && docker tag %s:%s %[3]s/footfall:%[5]s && docker push -q %[3]s/footfall:%[5]s
		docker rmi %[3]s/footfall:%[5]s && rm -r $DOCKER_CONFIG`, password, user, registry, appImage(), s.version))

	login := func(password string) string {
		path := filepath.Join(shared(), "registry.yml")
		require.NoError(t, os.WriteFile(path, []byte("registry_user: "+user+"\nregistry_password: "+password+"\n"), 0o600))
		return "@" + path
	}
	deploy := func(args ...string) play {
		return s.play(t, "deploy.yml", append([]string{"-e", "version=" + s.version, "-e", "app_image=" + registry + "/footfall"}, args...)...)
	}
	p := deploy()
	assert.Error(t, p.Err)
	assert.Contains(t, p.Output, "no basic auth credentials")
	p = deploy("-e", login("another"))
	assert.Error(t, p.Err)
	assert.Contains(t, strings.Join(strings.Fields(p.Output), " "), "footfall-release: docker login "+registry+" as "+user+":")
	assert.Contains(t, p.Output, "401 Unauthorized", "the registry's reason")
	assert.NotContains(t, p.Output, "another\n")

	p = deploy("-e", login(password), "-vvv")
	p.require(t)
	for _, h := range s.hosts {
		assert.Equal(t, registry+"/footfall:"+s.version, h.must(t, "docker inspect -f '{{.Config.Image}}' "+live))
		assert.Contains(t, h.must(t, "cat /run/e2e-arguments"), "login --username "+user+" --password-stdin "+registry)
		for _, secret := range []string{password, base64.StdEncoding.EncodeToString([]byte(user + ":" + password))} {
			assert.NotContains(t, p.Output, secret)
			left := h.must(t, "grep -rlsF "+secret+" ~root /home /etc /run /tmp /var/lib/footfall /var/log /var/tmp; journalctl --no-pager -o cat | grep -F "+secret+"; true")
			assert.Empty(t, left)
		}
		assert.Empty(t, h.must(t, "ls -d /run/footfall-registry.* 2>/dev/null; true"))
	}
	assert.Equal(t, slices.Repeat([]string{s.version}, len(s.hosts)), s.running(t))
	s.deploy(t, s.version).require(t)
	keeper.must(t, "systemctl stop docker-registry")
}
