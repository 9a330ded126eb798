package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
)

// bench is what the faults strike: two PostgreSQL servers, of which one is the
// synchronous standby of the other, and instances of the service, each with a
// way of its own to both. The last instance goes through poolers.
type bench struct {
	dir       string
	binary    string
	as        *syscall.Credential // of PostgreSQL and the poolers, which refuse root; nil: ours
	api       *toxiproxy.ApiServer
	nodes     [2]*node
	primary   atomic.Int32 // which node that is
	poolers   [2]*process
	instances []*instance
	day       int        // the day that the clocks are on, from today
	promoted  int        // how often the standby became the primary
	database  sync.Mutex // of the faults that need the servers to themselves
}

// node is one PostgreSQL server.
type node struct {
	*process
	name, data string
	port       int
	repl       *toxiproxy.Proxy // through which the other one replicates
}

// instance is one process of the service.
type instance struct {
	*process
	index  int
	socket string
	clock  string // the file with its clock's error in seconds
	ways   [2]*toxiproxy.Proxy
	mu     sync.Mutex // of the faults that need the process to themselves
}

// process is a program that can be started more than once.
type process struct {
	command func() *exec.Cmd
	cmd     *exec.Cmd
	ended   chan struct{} // closed when cmd has ended
	log     string
}

func (p *process) start() error {
	p.cmd = p.command()
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if p.cmd.SysProcAttr == nil {
		p.cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	p.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // nothing outlives a run, however that ends
	if err := p.cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	p.ended = ended
	go func(cmd *exec.Cmd) { cmd.Wait(); close(ended) }(p.cmd)
	return nil
}

// end sends a signal that ends the process, and waits for that.
func (p *process) end(signal syscall.Signal) {
	p.cmd.Process.Signal(signal)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		p.cmd.Process.Kill()
		<-p.ended
	}
}

func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// kill ends the process and its children as kill -9 does, all at once.
func (p *process) kill() {
	children := childrenOf(p.cmd.Process.Pid)
	p.cmd.Process.Kill()
	for _, pid := range children {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.ended
	for _, pid := range children {
		for deadline := time.Now().Add(5 * time.Second); syscall.Kill(pid, 0) == nil && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
	}
}

func childrenOf(parent int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		content, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// pid (name) state parent …; the name may hold anything.
		fields := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// freePort returns a port that nothing listened on a moment ago. It lies below
// those that the kernel gives to clients, so that none of these takes it while
// its server is down.
func freePort() int {
	ports.Lock()
	defer ports.Unlock()
	for {
		ports.next++
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", ports.next))
		if err == nil {
			ln.Close()
			return ports.next
		}
	}
}

var ports = struct {
	sync.Mutex
	next int
}{next: 20000 + os.Getpid()%8000}

// newBench starts everything. What it leaves in dir are the logs.
func newBench(ctx context.Context, dir, binary string, instances int) (b *bench, err error) {
	logger := zerolog.Nop()
	b = &bench{dir: dir, binary: binary, api: toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), logger)}
	defer func() {
		if err != nil {
			b.stop()
		}
	}()
	if err := os.Chmod(dir, 0o755); err != nil {
		return b, err
	}
	if os.Getuid() == 0 {
		account, err := user.Lookup("postgres")
		if err != nil {
			account, err = user.Lookup("nobody")
		}
		if err != nil {
			return b, err
		}
		uid, _ := strconv.Atoi(account.Uid)
		gid, _ := strconv.Atoi(account.Gid)
		b.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	for i, name := range []string{"a", "b"} {
		n := &node{name: name, data: filepath.Join(dir, name), port: freePort()}
		n.process = &process{log: filepath.Join(dir, "postgres-"+name+".log"), command: func() *exec.Cmd {
			return b.server("postgres", "-D", n.data, "-p", strconv.Itoa(n.port), "-c", "cluster_name="+n.name)
		}}
		if n.repl, err = b.proxy(n.port); err != nil {
			return b, err
		}
		b.nodes[i] = n
	}
	if err := b.makeCluster(ctx); err != nil {
		return b, err
	}
	var ways [2]int
	for i, n := range b.nodes {
		port := freePort()
		ini := filepath.Join(dir, "pgbouncer-"+n.name+".ini")
		if err := os.WriteFile(ini, fmt.Appendf(nil, poolerSettings, n.port, port), 0o644); err != nil {
			return b, err
		}
		b.poolers[i] = &process{log: filepath.Join(dir, "pgbouncer-"+n.name+".log"), command: func() *exec.Cmd { return b.server("pgbouncer", ini) }}
		if err := b.poolers[i].start(); err != nil {
			return b, err
		}
		ways[i] = port
	}
	for i := range instances {
		in := &instance{index: i, socket: filepath.Join(dir, fmt.Sprintf("footfall-%d.sock", i)), clock: filepath.Join(dir, fmt.Sprintf("clock-%d", i))}
		pooled := i == instances-1
		var hosts []string
		for j, n := range b.nodes {
			port := n.port
			if pooled {
				port = ways[j]
			}
			if in.ways[j], err = b.proxy(port); err != nil {
				return b, err
			}
			hosts = append(hosts, in.ways[j].Listen)
		}
		url := "postgres://footfall@" + strings.Join(hosts, ",") + "/footfall?sslmode=disable&target_session_attrs=read-write"
		if pooled {
			url += "&default_query_exec_mode=exec"
		}
		in.process = &process{log: filepath.Join(dir, fmt.Sprintf("footfall-%d.log", i)), command: func() *exec.Cmd {
			cmd := exec.Command(b.binary)
			cmd.Env = []string{"DATABASE_URL=" + url, "LISTEN_ADDR=unix:" + in.socket, "LOG_LEVEL=warn", clockVariable + "=" + in.clock}
			return cmd
		}}
		if err := in.process.start(); err != nil {
			return b, err
		}
		b.instances = append(b.instances, in)
	}
	return b, nil
}

const poolerSettings = `
[databases]
* = host=127.0.0.1 port=%d user=footfall
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
server_round_robin = 1
server_login_retry = 1
server_check_delay = 0
`

// server is a command of PostgreSQL or the pooler under the account for it.
func (b *bench) server(name string, args ...string) *exec.Cmd {
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.Sort(dirs)
	dirs = append(dirs, "/usr/sbin")
	path := name
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			path = filepath.Join(dir, name)
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if b.as != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: b.as}
	}
	return cmd
}

func output(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, out)
	}
	return nil
}

func (b *bench) proxy(port int) (*toxiproxy.Proxy, error) {
	p := toxiproxy.NewProxy(b.api, strconv.Itoa(port), fmt.Sprintf("127.0.0.1:%d", freePort()), fmt.Sprintf("127.0.0.1:%d", port))
	return p, p.Start()
}

// A process that is killed loses nothing that the kernel has; waiting for the
// disk would only make the bench slower.
const serverSettings = `
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
full_page_writes = off
max_connections = 100
shared_buffers = 64MB
wal_keep_size = 256MB
wal_retrieve_retry_interval = 50ms
wal_receiver_timeout = 4s
wal_sender_timeout = 4s
restart_after_crash = on
`

// synchronous makes commits wait for the other node.
const synchronous = "ANY 1 (a, b)"

func (b *bench) makeCluster(ctx context.Context) error {
	first := b.nodes[0]
	for _, n := range b.nodes {
		if err := os.Mkdir(n.data, 0o700); err != nil {
			return err
		}
		if b.as != nil {
			if err := os.Chown(n.data, int(b.as.Uid), int(b.as.Gid)); err != nil {
				return err
			}
		}
	}
	if err := output(b.server("initdb", "-D", first.data, "-U", "footfall", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")); err != nil {
		return err
	}
	conf, err := os.OpenFile(filepath.Join(first.data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = conf.WriteString(serverSettings)
	if err := errors.Join(err, conf.Close()); err != nil {
		return err
	}
	if err := first.start(); err != nil {
		return err
	}
	if err := b.execIn(ctx, first, "postgres", "CREATE DATABASE footfall"); err != nil {
		return err
	}
	return b.rebuild(ctx, 1)
}

// rebuild makes node i, which is down, the synchronous standby of the primary.
func (b *bench) rebuild(ctx context.Context, i int) error {
	n, primary := b.nodes[i], b.nodes[1-i]
	entries, err := os.ReadDir(n.data)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(n.data, e.Name())); err != nil {
			return err
		}
	}
	if err := output(b.server("pg_basebackup", "-D", n.data, "-h", "127.0.0.1", "-p", strconv.Itoa(primary.port), "-U", "footfall",
		"--checkpoint=fast", "--no-sync", "--wal-method=stream")); err != nil {
		return err
	}
	host, port, _ := net.SplitHostPort(primary.repl.Listen)
	auto := fmt.Sprintf("\nprimary_conninfo = 'host=%s port=%s user=footfall'\nsynchronous_standby_names = '%s'\n", host, port, synchronous)
	conf, err := os.OpenFile(filepath.Join(n.data, "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = conf.WriteString(auto)
	if err := errors.Join(err, conf.Close(), os.WriteFile(filepath.Join(n.data, "standby.signal"), nil, 0o644)); err != nil {
		return err
	}
	if b.as != nil {
		if err := os.Chown(filepath.Join(n.data, "standby.signal"), int(b.as.Uid), int(b.as.Gid)); err != nil {
			return err
		}
	}
	if err := n.start(); err != nil {
		return err
	}
	if err := b.awaitQuery(ctx, primary, `SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming' AND application_name = '`+n.name+`'`); err != nil {
		return err
	}
	for _, sql := range []string{`ALTER SYSTEM SET synchronous_standby_names = '` + synchronous + `'`, `SELECT pg_reload_conf()`} {
		if err := b.exec(ctx, primary, sql); err != nil {
			return err
		}
	}
	return b.awaitStandby(ctx)
}

// awaitStandby returns when commits wait for the standby, and it has all of
// them.
func (b *bench) awaitStandby(ctx context.Context) error {
	return b.awaitQuery(ctx, b.nodes[b.primary.Load()], `SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'quorum' AND state = 'streaming'`)
}

// promote makes the standby the primary. Until the other node is its standby
// it confirms alone, as Patroni has it.
func (b *bench) promote(ctx context.Context) error {
	b.primary.Store(1 - b.primary.Load())
	b.promoted++
	n := b.nodes[b.primary.Load()]
	for _, sql := range []string{`SELECT pg_promote()`, `ALTER SYSTEM SET synchronous_standby_names = ''`, `SELECT pg_reload_conf()`} {
		if err := b.exec(ctx, n, sql); err != nil {
			return err
		}
	}
	return nil
}

// patienceOfBench is how long anything may take that is awaited.
const patienceOfBench = 60 * time.Second

// query runs do on a connection of its own past all proxies, again and again
// until it succeeds.
func (b *bench) query(ctx context.Context, n *node, database string, do func(context.Context, *pgx.Conn) error) error {
	deadline := time.Now().Add(patienceOfBench)
	for {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			conn, err := pgx.Connect(ctx, fmt.Sprintf("postgres://footfall@127.0.0.1:%d/%s?sslmode=disable", n.port, database))
			if err != nil {
				return err
			}
			defer conn.Close(context.WithoutCancel(ctx))
			return do(ctx, conn)
		}()
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (b *bench) execIn(ctx context.Context, n *node, database, sql string) error {
	err := b.query(ctx, n, database, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

func (b *bench) exec(ctx context.Context, n *node, sql string) error {
	return b.execIn(ctx, n, "footfall", sql)
}

// awaitQuery asks until the answer is true.
func (b *bench) awaitQuery(ctx context.Context, n *node, sql string) error {
	err := b.query(ctx, n, "footfall", func(ctx context.Context, conn *pgx.Conn) error {
		var yes bool
		if err := conn.QueryRow(ctx, sql).Scan(&yes); err != nil {
			return err
		}
		if !yes {
			return errors.New("never came")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// awaitQuiet returns when no batch is left that might still be applied.
func (b *bench) awaitQuiet(ctx context.Context) error {
	return b.awaitQuery(ctx, b.nodes[b.primary.Load()], `
		SELECT count(*) = 0
		FROM pg_stat_activity
		WHERE datname = 'footfall' AND pid <> pg_backend_pid() AND state <> 'idle'`)
}

// verify recounts with the program's own command.
func (b *bench) verify() error {
	cmd := exec.Command(b.binary, "verify")
	cmd.Env = []string{fmt.Sprintf("DATABASE_URL=postgres://footfall@127.0.0.1:%d/footfall?sslmode=disable", b.nodes[b.primary.Load()].port)}
	return output(cmd)
}

func (b *bench) targets() (ts []*target) {
	for i, in := range b.instances {
		ts = append(ts, newTarget(i, "unix:"+in.socket))
	}
	return ts
}

// awaitReady returns when every instance would count a visit.
func (b *bench) awaitReady(ctx context.Context) error {
	for _, t := range b.targets() {
		for deadline := time.Now().Add(patienceOfBench); ; {
			limit, cancel := context.WithTimeout(ctx, 2*time.Second)
			status, body, _, err := t.get(limit, "/readyz", "")
			cancel()
			if err == nil && status == 200 {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("instance %d does not get ready: %d %s %w", t.index, status, body, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.client.CloseIdleConnections()
	}
	return nil
}

// stop ends all that newBench has started.
func (b *bench) stop() {
	var all []*process
	for _, in := range b.instances {
		all = append(all, in.process)
		for _, way := range in.ways {
			way.Stop()
		}
	}
	for _, p := range b.poolers {
		all = append(all, p)
	}
	for _, n := range b.nodes {
		if n != nil {
			all = append(all, n.process)
		}
	}
	for _, p := range all {
		if p != nil && p.cmd != nil {
			p.kill()
		}
	}
}

// lines returns the last lines of a log.
func lines(path string, n int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	content, _ := io.ReadAll(f)
	all := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(all[max(0, len(all)-n):], "\n")
}
