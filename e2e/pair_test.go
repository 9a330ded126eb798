//go:build e2e

package e2e

import (
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A pair is the database that the emulator's RDS lacks: a PostgreSQL and its synchronous standby, which have one name, its
// writer's, and TLS by a private authority. Its administrator is no superuser, as with Amazon's.
type pair struct {
	network    network
	name       string
	dir        string // certificate and key, the same in the containers
	containers []string
	first      int // number of the first one's address
	writer     int
}

// startPair starts both with the password of the administrator.
func startPair(t *testing.T, n network, name, password string, first int) *pair {
	t.Helper()
	p := &pair{network: n, name: name, dir: filepath.Join(shared(), name), first: first}
	certificate, authority := selfSigned(t, name, strings.Replace(name, "footfall.", "footfall-restored.", 1))
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(p.dir, 0o755))
	for file, text := range map[string][]byte{"crt": authority, "key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})} {
		require.NoError(t, os.WriteFile(filepath.Join(p.dir, file), text, 0o600))
		require.NoError(t, os.Chown(filepath.Join(p.dir, file), 999, 999)) // the image's account postgres
	}
	p.start(t, "")
	p.await(t, 0, "SELECT")
	_, err = docker("exec", p.containers[0], "sh", "-ec", "echo 'host replication all all scram-sha-256' >> $PGDATA/pg_hba.conf; sed -i 's/^host all all all/hostssl all all all/' $PGDATA/pg_hba.conf; pg_ctl reload --silent")
	require.NoError(t, err)
	p.sql(t, 0, "CREATE ROLE postgres LOGIN CREATEDB CREATEROLE PASSWORD '"+password+"'; GRANT pg_monitor TO postgres")
	p.copy(t, "--write-recovery-conf")
	p.await(t, 1, "SELECT")
	p.sql(t, 0, "ALTER SYSTEM SET synchronous_standby_names = '*'")
	p.sql(t, 0, "SELECT pg_reload_conf()")
	eventually(t, 30*time.Second, "the standby is synchronous", func() error {
		if state := p.sql(t, 0, "SELECT sync_state FROM pg_stat_replication"); state != "sync" {
			return fmt.Errorf("its state is %q", state)
		}
		return nil
	})
	return p
}

// copy starts a further one from the writer's data as they are now.
func (p *pair) copy(t *testing.T, options string) {
	t.Helper()
	p.start(t, "until PGPASSWORD=rdsadmin pg_basebackup --host="+p.addr(p.network, p.first+p.writer)+" --username=rdsadmin --checkpoint=fast --pgdata=$PGDATA "+options+"; do sleep 1; done; ")
	p.await(t, len(p.containers)-1, "SELECT")
}

func (p *pair) start(t *testing.T, before string) {
	t.Helper()
	i := len(p.containers)
	p.containers = append(p.containers, fmt.Sprintf("footfall-e2e-%s-rds-%d", pid, p.first+i))
	_, err := docker("run", "--detach", "--name", p.containers[i], "--label", label+"="+pid, "--network", p.network.name, "--ip", p.addr(p.network, p.first+i),
		"--volume", p.dir+":"+p.dir+":ro", "--env", "POSTGRES_USER=rdsadmin", "--env", "POSTGRES_PASSWORD=rdsadmin", "--env", "POSTGRES_DB=postgres",
		"--user", "postgres", "--entrypoint", "bash", "postgres:17", "-c",
		before+"exec docker-entrypoint.sh postgres -c ssl=on -c ssl_cert_file="+p.dir+"/crt -c ssl_key_file="+p.dir+"/key")
	require.NoError(t, err)
}

func (p *pair) addr(n network, i int) string {
	a := n.prefix.Masked().Addr().As4()
	return net.IPv4(a[0], a[1], 255, byte(i)).String()
}

func (p *pair) await(t *testing.T, i int, query string) {
	t.Helper()
	eventually(t, 2*time.Minute, p.containers[i]+" answers", func() error {
		_, err := docker("exec", p.containers[i], "psql", "-X", "-h", "127.0.0.1", "-d", "postgresql://rdsadmin:rdsadmin@/postgres", "-qAtc", query)
		return err
	})
}

// sql asks one of the two as its superuser, whom Amazon's customers do not have.
func (p *pair) sql(t *testing.T, i int, query string) string {
	t.Helper()
	out, err := docker("exec", p.containers[i], "psql", "-X", "-v", "ON_ERROR_STOP=1", "-U", "rdsadmin", "-d", "postgres", "-qAtc", query)
	require.NoError(t, err)
	return out
}

// remove ends both.
func (p *pair) remove() {
	for _, c := range p.containers {
		docker("rm", "-f", "-v", c)
	}
}

// A resolver answers for names of its own and hands every other question on to this machine's.
type resolver struct {
	mu    sync.Mutex
	names map[string]string
	asked map[string]int
}

func startResolver(t *testing.T, n network) *resolver {
	t.Helper()
	r := &resolver{names: map[string]string{}, asked: map[string]int{}}
	conn, err := net.ListenPacket("udp", net.JoinHostPort(n.addr(1), "53"))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	go func() {
		question := make([]byte, 1500)
		for {
			size, from, err := conn.ReadFrom(question)
			if err != nil {
				return
			}
			go func(question []byte) {
				if answer := r.answer(question); answer != nil {
					conn.WriteTo(answer, from)
				}
			}(append([]byte(nil), question[:size]...))
		}
	}()
	return r
}

func (r *resolver) point(name, address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names[name] = address
}

// answer is RFC 1035's: the header with the counts changed, the question, one record of type A without a time to live.
func (r *resolver) answer(question []byte) []byte {
	var labels []string
	end := 12
	for end < len(question) && question[end] > 0 {
		next := end + 1 + int(question[end])
		if next >= len(question) {
			return nil
		}
		labels = append(labels, string(question[end+1:next]))
		end = next
	}
	end += 5
	if end > len(question) {
		return nil
	}
	r.mu.Lock()
	address, known := r.names[strings.ToLower(strings.Join(labels, "."))]
	r.mu.Unlock()
	if !known {
		return forward(question)
	}
	answer := append([]byte(nil), question[:end]...)
	answer[2], answer[3] = answer[2]|0x84, 0x80 // an answer, of the name's own server, recursion available
	clear(answer[6:12])
	if binary.BigEndian.Uint16(question[end-4:]) == 1 && address != "" {
		answer[7] = 1
		answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
		answer = append(answer, net.ParseIP(address).To4()...)
	}
	return answer
}

func forward(question []byte) []byte {
	conn, err := net.DialTimeout("udp", net.JoinHostPort(nameserver(), "53"), time.Second)
	if err != nil {
		return nil
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	answer := make([]byte, 4096)
	if _, err = conn.Write(question); err == nil {
		var size int
		if size, err = conn.Read(answer); err == nil {
			return answer[:size]
		}
	}
	return nil
}

// fail kills the writer; the standby takes its place.
func (p *pair) fail(t *testing.T) {
	t.Helper()
	_, err := docker("kill", p.containers[p.writer])
	require.NoError(t, err)
	p.writer = 1 - p.writer
	_, err = docker("exec", p.containers[p.writer], "pg_ctl", "promote", "--wait", "--silent")
	require.NoError(t, err)
}
