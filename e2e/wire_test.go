//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// capture counts the packets on the group's port until one says "end of the capture": those with readable HTTP, and those
// with records of TLS (RFC 8446, 5.1).
const capture = `import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
print("listening", flush=True)
plain = records = 0
while True:
    p = s.recv(65535)
    if p[12:14] != b"\x08\x00" or p[23] != 6 or (8443).to_bytes(2, "big") not in (p[34:36], p[36:38]):
        continue
    if b"end of the capture" in p:
        break
    plain += b"HTTP/1." in p
    records += b"\x17\x03\x03" in p
print(plain, records > 100)`

// renew is a certificate as the role web makes it, for some days.
const renew = `cd /etc/footfall && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days %d -subj /CN=another \
	-addext subjectAltName=DNS:footfall -addext basicConstraints=critical,CA:FALSE -keyout group.key -out group.crt 2>/dev/null && systemctl reload nginx`

// testWire looks at what goes from the edge to another host.
func testWire(t *testing.T, s *service) {
	peer := s.hosts[1]
	plain := "http://" + peer.ip + ":8443/"

	t.Run("nothing readable", func(t *testing.T) {
		peer.must(t, "rm -f /run/capture; systemd-run --quiet --collect --unit=capture --property=StandardOutput=file:/run/capture python3 -c '"+capture+"'")
		captured := func(want string) {
			eventually(t, 30*time.Second, "the capture says "+want, func() error {
				_, err := peer.sh("grep -qx '" + want + "' /run/capture")
				return err
			})
		}
		captured("listening")
		for range 200 {
			s.visit(t)
		}
		// Plain HTTP gets no page, and the capture does see it.
		assert.Equal(t, "400", s.edge().must(t, "curl -s -o /dev/null -w '%{http_code}' -H 'Note: end of the capture' "+plain))
		captured("0 True")
	})

	page := func(want int) {
		eventually(t, 30*time.Second, fmt.Sprintf("the page answers %d", want), func() error {
			status, _, err := s.get("/")
			if err == nil && status != want {
				err = fmt.Errorf("%d", status)
			}
			return err
		})
	}

	t.Run("another certificate is refused", func(t *testing.T) {
		serving := s.edge().must(t, "docker stop "+live)
		defer s.edge().must(t, "docker start "+serving)
		page(http.StatusOK) // from the other host
		peer.must(t, "mkdir /run/e2e-wire && cp -p /etc/footfall/group.* /run/e2e-wire/ && "+fmt.Sprintf(renew, 3650))
		page(http.StatusServiceUnavailable)
		peer.must(t, "mv /run/e2e-wire/group.* /etc/footfall/ && rmdir /run/e2e-wire && systemctl reload nginx")
		page(http.StatusOK)
	})

	t.Run("made again before its end", func(t *testing.T) {
		visited := func() {
			t.Helper()
			before := peer.must(t, "wc -l < /var/log/nginx/access.log")
			eventually(t, 30*time.Second, "the edge sends the host visits", func() error {
				s.visit(t)
				if now := peer.must(t, "wc -l < /var/log/nginx/access.log"); now == before {
					return fmt.Errorf("none yet")
				}
				return nil
			})
		}
		peer.must(t, fmt.Sprintf(renew, 364))
		s.edge().must(t, "cat >> /etc/footfall/group.pem <<'PEM'\n"+peer.must(t, "cat /etc/footfall/group.crt")+"\nPEM\nsystemctl reload nginx")
		visited()
		l := startLoad(t, s.url("/"), 8, 20*time.Millisecond)
		p := s.play(t, "site.yml", "--tags", "web")
		r := l.finish()
		p.require(t)
		p.changedOnly(t, "web")
		// A reloaded nginx closes idle connections, and a client may not send a POST again that met the end of one (RFC 9110, 9.2.2).
		assert.Zero(t, r.failedGETs(), "%s", r)
		record("certificate of a host behind the edge made again, under load", r.Requests, r.Failed, p.Took, "failed GETs %d", r.failedGETs())
		peer.must(t, "openssl x509 -noout -checkend 300000000 -in /etc/footfall/group.crt")
		visited()
	})
}
