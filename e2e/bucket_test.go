//go:build e2e

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// introduce lets a host know where the bucket is and whom to trust.
func (b *bucket) introduce(h *host) error {
	_, err := shIn(b.ca, "docker", "exec", "-i", h.container, "sh", "-c", "cat > /etc/ssl/bucket.pem; echo '"+b.line+"' >> /etc/hosts")
	return err
}

// A bucket is S3 by TLS, which pgBackRest insists on: moto's behind a proxy with a private authority. The hosts know
// it as bucketHost.
type bucket struct {
	endpoint string // host:port, as pgBackRest takes it
	ca       []byte // PEM
	line     string // for /etc/hosts
	refusing atomic.Bool
	requests atomic.Int64 // that were let through
}

const (
	bucketHost = "s3.example.org"
	bucketName = "footfall-backups"
)

// startBucket makes an empty bucket for the hosts of a network.
func startBucket(t *testing.T, n network) *bucket {
	t.Helper()
	req, err := http.NewRequest(http.MethodPut, motoIn(t, n)+"/"+bucketName, nil)
	require.NoError(t, err)
	req.Header.Set("Authorization", authorization("us-east-1/s3"))
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	return startS3(t, n)
}

// startS3 puts TLS before moto's S3, whose buckets somebody else makes.
func startS3(t *testing.T, n network) *bucket {
	t.Helper()
	behind, err := url.Parse(motoIn(t, n))
	require.NoError(t, err)
	certificate, ca := selfSigned(t, bucketHost)
	listener, err := tls.Listen("tcp", net.JoinHostPort(n.addr(1), "0"), &tls.Config{
		Certificates: []tls.Certificate{certificate}})
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	b := &bucket{endpoint: bucketHost + ":" + port, line: n.addr(1) + " " + bucketHost, ca: ca}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(behind) }}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b.refusing.Load() {
			http.Error(w, "this bucket refuses", http.StatusForbidden)
			return
		}
		b.requests.Add(1)
		proxy.ServeHTTP(w, r)
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return b
}

// selfSigned makes a certificate for a name, which is its own authority, and returns that in PEM as well.
func selfSigned(t *testing.T, names ...string) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	certificate := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, certificate, certificate, &key.PublicKey, key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
