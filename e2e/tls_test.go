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
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testTLS gives the edge a name that leads nowhere yet: the page is served by HTTP, and the run is green and names the
// record. An authority that refuses is left alone for a while. When the name leads to the edge, the timer gets the
// certificate of an ACME authority (pebble) and switches redirect, HSTS and port 443 on. Then its renewal.
func testTLS(t *testing.T, s *service) {
	const domain = "count.example.org"
	ca := startACME(t, s.network, s.network.addr(5))
	require.NoError(t, ca.introduce(s.edge()))
	site := func(wantChanged bool) play {
		t.Helper()
		p := s.play(t, "site.yml", "--tags", "web,monitoring,verify", "-e", "domain="+domain, "-e", "acme_email=ops@example.org",
			"-e", "acme_server=https://"+ca.ip+":14000/dir", "-e", "acme_ca_bundle=/etc/ssl/acme-api.pem", "-e", "requests_per_second=10")
		p.require(t)
		assert.Equal(t, wantChanged, p.Changed > 0, "changed: %v", p.Tasks)
		return p
	}
	defer func() {
		// What a run is not told stays; a name goes where that is said, and the run says what that means.
		p := s.play(t, "site.yml", "--tags", "web,monitoring", "-e", "acme_email=ops@example.org",
			"-e", "acme_server=https://"+ca.ip+":14000/dir", "-e", "acme_ca_bundle=/etc/ssl/acme-api.pem", "-e", "requests_per_second=10")
		p.require(t)
		assert.Zero(t, p.Changed, "%v", p.Tasks)
		p = s.play(t, "site.yml", "--tags", "web,monitoring", "-e", "domain=")
		p.require(t)
		assert.Contains(t, p.Output, "domain is empty: HTTPS for "+domain+" ends")
	}()

	// client resolves every name to the edge.
	client := func(version uint16) *http.Client {
		return &http.Client{Timeout: 5 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				DisableKeepAlives: true,
				TLSClientConfig:   &tls.Config{RootCAs: ca.roots, MinVersion: tls.VersionTLS10, MaxVersion: version},
				DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
					_, port, _ := net.SplitHostPort(addr)
					return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(s.edge().ip, port))
				}}}
	}
	get := func(url string) *http.Response {
		t.Helper()
		resp, err := client(tls.VersionTLS13).Get(url)
		require.NoError(t, err)
		resp.Body.Close()
		return resp
	}
	// probe is what the monitoring sees of the page: does it answer, and with a certificate?
	probe := func(want string) {
		t.Helper()
		eventually(t, time.Minute, "the monitoring sees it", func() error {
			out, err := s.edge().sh(`for metric in probe_success probe_http_ssl; do
				curl -sf -g "http://127.0.0.1:9090/api/v1/query?query=$metric{instance='https://` + domain + `/healthz'}" | grep -o '"[01]"'; done | xargs`)
			if err == nil && out != want {
				err = fmt.Errorf("answers, with a certificate: %q, want %q", out, want)
			}
			return err
		})
	}

	p := site(true)
	wanted := "make an A record " + domain + " → " + s.edge().ip + "; the host obtains its certificate within two minutes"
	assert.Contains(t, strings.Join(strings.Fields(p.Output), " "), wanted)
	for _, name := range []string{domain, s.edge().ip} {
		resp := get("http://" + name + "/")
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		assert.Empty(t, resp.Header.Get("Strict-Transport-Security"))
	}
	assert.Contains(t, strings.Join(strings.Fields(site(false).Output), " "), wanted)
	probe("1 0")
	assert.Equal(t, "active", s.edge().must(t, "systemctl is-active footfall-certificate.timer"))
	assert.Zero(t, ca.orders(t), "the authority was asked for a name that does not lead here")

	// The host and the controller see the record, the authority does not yet: it is asked once, and again much later.
	for _, script := range []func(string) (string, error){s.edge().sh, func(script string) (string, error) { return docker("exec", controllerName(), "sh", "-c", script) }} {
		_, err := script("echo '" + s.edge().ip + " " + domain + "' >> /etc/hosts")
		require.NoError(t, err)
	}
	const wait = "/var/lib/footfall/certificate.wait"
	for i, seconds := range []string{"900", "1800"} {
		eventually(t, 2*time.Minute, "the authority refuses", func() error {
			if got, err := s.edge().sh("cat " + wait); err != nil || got != seconds {
				return fmt.Errorf("wait for %q s: %w", got, err)
			}
			return nil
		})
		s.edge().must(t, "footfall-certificate | grep 'the next try is "+seconds+" s after'")
		assert.Equal(t, i+1, ca.orders(t))
		if i == 0 {
			s.edge().must(t, "touch -d '-1 day' "+wait)
		}
	}
	assert.Contains(t, s.edge().must(t, "journalctl -u footfall-certificate -o cat"), "could not resolve URL", "the authority's reason")

	// The record is everywhere: the timer gets the certificate while visitors come.
	require.NoError(t, ca.point(domain, s.edge().ip))
	s.edge().must(t, "touch -d '-1 day' "+wait)
	begin, schemes := time.Now(), map[string]int{}
	visitor := client(tls.VersionTLS13)
	visitor.CheckRedirect = nil
	eventually(t, 2*time.Minute, "HTTPS by itself", func() error {
		resp, err := visitor.Get("http://" + domain + "/badge.svg")
		require.NoError(t, err, "a visitor's request failed, of %v", schemes)
		resp.Body.Close()
		require.Equal(t, http.StatusOK, resp.StatusCode)
		schemes[resp.Request.URL.Scheme]++
		if schemes["https"] < 20 {
			return fmt.Errorf("%v", schemes)
		}
		return nil
	})
	record("HTTPS by itself, from the record on", schemes["http"]+schemes["https"], 0, time.Since(begin), "%v", schemes)
	site(false)
	probe("1 1")

	resp := get("https://" + domain + "/")
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	assert.Equal(t, "max-age=63072000", resp.Header.Get("Strict-Transport-Security"))
	resp = get("http://" + domain + "/badge.svg?a=b")
	assert.Equal(t, http.StatusMovedPermanently, resp.StatusCode)
	assert.Equal(t, "https://"+domain+"/badge.svg?a=b", resp.Header.Get("Location"))
	_, err := client(tls.VersionTLS12).Get("https://" + domain + "/healthz")
	assert.NoError(t, err, "Route 53's health checks")
	_, err = client(tls.VersionTLS11).Get("https://" + domain + "/healthz")
	assert.ErrorContains(t, err, "protocol version")
	_, err = client(tls.VersionTLS13).Get("https://other.example.org/")
	assert.ErrorContains(t, err, "unrecognized name")
	_, err = client(tls.VersionTLS13).Get("http://other.example.org/")
	assert.Error(t, err, "an answer under another name: the connection must be closed")

	// Where the name leads to the host already, one run does it all.
	s.edge().must(t, "systemctl stop footfall-certificate.timer; rm -r /etc/letsencrypt/live /etc/letsencrypt/archive /etc/letsencrypt/renewal")
	p = site(true)
	assert.NotContains(t, p.Output, "make an A record")
	serial := get("https://" + domain + "/").TLS.PeerCertificates[0].SerialNumber

	// The certificate has 45 days left. Called due from 100 days on, it is renewed by the unit.
	s.edge().must(t, "rm "+wait+"; sed -i '1i renew_before_expiry = 100 days' /etc/letsencrypt/renewal/"+domain+".conf")
	begin = time.Now()
	s.edge().must(t, "systemctl start footfall-certificate")
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

	// Ten a second, with a burst of twenty.
	answers := map[int]int{}
	for range 100 {
		resp, err := client(tls.VersionTLS13).Get("https://" + domain + "/healthz")
		require.NoError(t, err)
		resp.Body.Close()
		answers[resp.StatusCode]++
	}
	assert.NotZero(t, answers[http.StatusOK], "%v", answers)
	assert.NotZero(t, answers[http.StatusTooManyRequests], "%v", answers)
}

// An acme is a certificate authority in a network.
type acme struct {
	ip, container string
	roots         *x509.CertPool
	api, root     []byte // PEM: who it is to certbot, and who signs its certificates
}

// introduce makes a host trust it: certbot, and the monitoring, which asks the page as a visitor does.
func (a acme) introduce(h *host) error {
	_, err := h.sh("cat > /etc/ssl/acme-api.pem <<'PEM'\n" + string(a.api) + "PEM\n" +
		"cat > /usr/local/share/ca-certificates/acme.crt <<'PEM'\n" + string(a.root) + "PEM\nupdate-ca-certificates")
	return err
}

// orders is how often the authority was asked for a certificate.
func (a acme) orders(t *testing.T) int {
	t.Helper()
	log, err := exec.Command("docker", "logs", a.container).CombinedOutput()
	require.NoError(t, err)
	return strings.Count(string(log), "POST /order-plz")
}

// point makes the A record of a name as the authority sees it, or for "" takes it away.
func (a acme) point(name, ip string) error {
	command := []string{"exec", a.container, "curl", "-sSf", "-d", fmt.Sprintf(`{"host": %q}`, name), "http://127.0.0.1:8055/clear-a"}
	if ip != "" {
		command = append(command, "--next", "-sSf", "-d", fmt.Sprintf(`{"host": %q, "addresses": [%q]}`, name, ip), "http://127.0.0.1:8055/add-a")
	}
	_, err := docker(command...)
	return err
}

// startACME starts an authority that knows no name yet at an address of the network, and makes the controller trust it.
func startACME(t *testing.T, n network, ip string) acme {
	t.Helper()
	a := acme{ip: ip, container: "footfall-e2e-" + pid + "-acme", roots: x509.NewCertPool()}
	dir := filepath.Join(shared(), "acme")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	_, err := sh("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=acme",
		"-addext", "subjectAltName=IP:"+a.ip, "-keyout", filepath.Join(dir, "key.pem"), "-out", filepath.Join(dir, "api.pem"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "pebble.json"), fmt.Appendf(nil, `{"pebble": {
		"listenAddress": "0.0.0.0:14000", "managementListenAddress": "0.0.0.0:15000", "certificate": %q, "privateKey": %q,
		"httpPort": 80, "tlsPort": 443, "certificateValidityPeriod": %d}}`,
		filepath.Join(dir, "api.pem"), filepath.Join(dir, "key.pem"), 45*24*3600), 0o644))
	_, err = docker("run", "--detach", "--init", "--name", a.container, "--label", label+"="+pid, "--network", n.name, "--ip", a.ip, "--cap-add", "NET_ADMIN",
		"--volume", dir+":"+dir+":ro", "--env", "PEBBLE_VA_NOSLEEP=1", controllerImage, "sh", "-c",
		"ip route del default; pebble-challtestsrv -defaultIPv4 '' -defaultIPv6 '' -http01 '' -https01 '' -tlsalpn01 '' -doh '' & exec pebble -config "+dir+"/pebble.json -dnsserver 127.0.0.1:8053")
	require.NoError(t, err)
	t.Cleanup(func() { docker("rm", "-f", "-v", a.container) })

	root := filepath.Join(dir, "root.pem")
	eventually(t, 30*time.Second, "the authority answers", func() error {
		text, err := sh("curl", "-sSf", "--cacert", filepath.Join(dir, "api.pem"), "https://"+a.ip+":15000/roots/0")
		if err == nil {
			err = os.WriteFile(root, []byte(text+"\n"), 0o644)
		}
		return err
	})
	a.root, err = os.ReadFile(root)
	require.NoError(t, err)
	require.True(t, a.roots.AppendCertsFromPEM(a.root))
	a.api, err = os.ReadFile(filepath.Join(dir, "api.pem"))
	require.NoError(t, err)
	_, err = docker("exec", controllerName(), "sh", "-c", "cp "+root+" /usr/local/share/ca-certificates/acme.crt && update-ca-certificates")
	require.NoError(t, err)
	return a
}
