//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testTLS gives the edge a name: a certificate from an ACME authority (pebble), its renewal by the
// timer's unit, the redirect, and no page under another name.
func testTLS(t *testing.T, s *service) {
	const domain = "count.example.org"
	ca := startACME(t, s, domain)
	settings := []string{"--tags", "web,verify", "-e", "domain=" + domain, "-e", "acme_email=ops@example.org",
		"-e", "acme_server=https://" + ca.ip + ":14000/dir", "-e", "acme_ca_bundle=/etc/ssl/acme-api.pem",
		"-e", "requests_per_second=5"}
	defer func() { s.play(t, "site.yml", "--tags", "web").require(t) }()

	begin := time.Now()
	s.play(t, "site.yml", settings...).require(t)
	record("certificate, redirect, HSTS", 0, 0, time.Since(begin), "")
	p := s.play(t, "site.yml", settings...)
	p.require(t)
	assert.Equal(t, 0, p.Changed, "%v", p.Tasks)

	// client resolves every name to the edge.
	client := func(version uint16) *http.Client {
		return &http.Client{Timeout: 5 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				DisableKeepAlives: true,
				TLSClientConfig:   &tls.Config{RootCAs: ca.roots, MaxVersion: version},
				DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
					_, port, _ := net.SplitHostPort(addr)
					return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(s.edge().ip, port))
				}}}
	}
	resp, err := client(tls.VersionTLS13).Get("https://" + domain + "/")
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	assert.Equal(t, "max-age=63072000", resp.Header.Get("Strict-Transport-Security"))
	serial := resp.TLS.PeerCertificates[0].SerialNumber

	_, err = client(tls.VersionTLS12).Get("https://" + domain + "/")
	assert.ErrorContains(t, err, "protocol version")
	_, err = client(tls.VersionTLS13).Get("https://other.example.org/")
	assert.ErrorContains(t, err, "unrecognized name")
	_, err = client(tls.VersionTLS13).Get("http://other.example.org/")
	assert.Error(t, err, "an answer under another name; want the connection closed")
	resp, err = client(tls.VersionTLS13).Get("http://" + domain + "/badge.svg?a=b")
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, http.StatusMovedPermanently, resp.StatusCode)
	assert.Equal(t, "https://"+domain+"/badge.svg?a=b", resp.Header.Get("Location"))

	// The certificate has 90 days left. Called due from 100 days on, it is renewed by the unit.
	assert.Equal(t, "active", s.edge().must(t, "systemctl is-active footfall-renew.timer"))
	s.edge().must(t, "sed -i '1i renew_before_expiry = 100 days' /etc/letsencrypt/renewal/"+domain+".conf")
	begin = time.Now()
	s.edge().must(t, "systemctl start footfall-renew.service")
	eventually(t, 10*time.Second, "nginx serves the renewed certificate", func() error {
		resp, err := client(tls.VersionTLS13).Get("https://" + domain + "/healthz")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.TLS.PeerCertificates[0].SerialNumber.Cmp(serial) == 0 {
			return fmt.Errorf("still the old one")
		}
		return nil
	})
	record("certificate renewed", 0, 0, time.Since(begin), "")

	// Five a second, with a burst of ten.
	answers := map[int]int{}
	for range 40 {
		resp, err := client(tls.VersionTLS13).Get("https://" + domain + "/healthz")
		require.NoError(t, err)
		resp.Body.Close()
		answers[resp.StatusCode]++
	}
	assert.NotZero(t, answers[http.StatusOK], "%v", answers)
	assert.NotZero(t, answers[http.StatusTooManyRequests], "%v", answers)
}

// An acme is a certificate authority in the service's network.
type acme struct {
	ip    string
	roots *x509.CertPool
}

// startACME starts an authority that finds domain at the edge, and makes edge and controller trust it.
func startACME(t *testing.T, s *service, domain string) acme {
	t.Helper()
	a := acme{ip: s.network.addr(5), roots: x509.NewCertPool()}
	dir := filepath.Join(shared(), "acme")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	_, err := sh("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=acme",
		"-addext", "subjectAltName=IP:"+a.ip, "-keyout", filepath.Join(dir, "key.pem"), "-out", filepath.Join(dir, "api.pem"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "pebble.json"), fmt.Appendf(nil, `{"pebble": {
		"listenAddress": "0.0.0.0:14000", "managementListenAddress": "0.0.0.0:15000", "certificate": %q, "privateKey": %q,
		"httpPort": 80, "tlsPort": 443, "certificateValidityPeriod": %d}}`,
		filepath.Join(dir, "api.pem"), filepath.Join(dir, "key.pem"), 90*24*3600), 0o644))
	name := "footfall-e2e-" + pid + "-acme"
	_, err = docker("run", "--detach", "--init", "--name", name, "--label", label+"="+pid, "--network", s.network.name, "--ip", a.ip,
		"--volume", dir+":"+dir+":ro", "--env", "PEBBLE_VA_NOSLEEP=1", controllerImage, "sh", "-c",
		"pebble-challtestsrv -defaultIPv4 "+s.edge().ip+" -defaultIPv6 '' -http01 '' -https01 '' -tlsalpn01 '' -doh '' & exec pebble -config "+dir+"/pebble.json -dnsserver 127.0.0.1:8053")
	require.NoError(t, err)
	t.Cleanup(func() { docker("rm", "-f", "-v", name) })

	root := filepath.Join(dir, "root.pem")
	eventually(t, 30*time.Second, "the authority answers", func() error {
		text, err := sh("curl", "-sSf", "--cacert", filepath.Join(dir, "api.pem"), "https://"+a.ip+":15000/roots/0")
		if err == nil {
			err = os.WriteFile(root, []byte(text+"\n"), 0o644)
		}
		return err
	})
	pem, err := os.ReadFile(root)
	require.NoError(t, err)
	require.True(t, a.roots.AppendCertsFromPEM(pem))
	_, err = docker("exec", controllerName(), "sh", "-c", "cp "+root+" /usr/local/share/ca-certificates/acme.crt && update-ca-certificates && "+
		"echo '"+s.edge().ip+" "+domain+"' >> /etc/hosts")
	require.NoError(t, err)
	api, err := os.ReadFile(filepath.Join(dir, "api.pem"))
	require.NoError(t, err)
	s.edge().must(t, "cat > /etc/ssl/acme-api.pem <<'PEM'\n"+string(api)+"PEM")
	return a
}
