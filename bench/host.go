package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// command prepares a program that SIGINT ends when ctx does. It has its own
// process group, so that a terminal's ^C reaches the benchmark alone, which then
// ends its programs in order.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 40 * time.Second
	return cmd
}

func output(cmd *exec.Cmd) (string, error) {
	var errors strings.Builder
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, errors.String())
	}
	return string(out), nil
}

// database is a private PostgreSQL that footfall dev makes.
type database struct {
	dev        *exec.Cmd
	conn       *pgx.Conn // to database postgres
	postmaster int
}

// settings are PostgreSQL's for every run. None makes a commit less durable:
// fsync and synchronous_commit stay on.
var settings = []string{
	"shared_buffers = '1GB'", // a quarter of a 4 GiB host (PostgreSQL's manual, 19.4.1)
	"max_wal_size = '4GB'",
	"checkpoint_timeout = '15min'",
	"wal_compression = lz4", // half the WAL after a checkpoint, for a few µs of CPU a visit at most; pglz ("on") takes three times PostgreSQL's CPU then
}

// startDatabase starts PostgreSQL twice: shared_buffers is read at start only.
func startDatabase(ctx context.Context, footfall, dir string) (*database, error) {
	d := &database{}
	err := d.start(ctx, footfall, dir)
	for _, setting := range settings {
		if err == nil {
			_, err = d.conn.Exec(ctx, "ALTER SYSTEM SET "+setting)
		}
	}
	if err = errors.Join(err, d.stop()); err != nil {
		return nil, err
	}
	if err := d.start(ctx, footfall, dir); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

func (d *database) start(ctx context.Context, footfall, dir string) error {
	// Not ended by ctx: it must outlive what uses it.
	d.dev = command(context.WithoutCancel(ctx), footfall, "dev")
	d.dev.Env = append(os.Environ(), "XDG_CACHE_HOME="+filepath.Join(dir, "cache"), "LISTEN_ADDR=127.0.0.1:0")
	d.dev.Stderr = os.Stderr
	out, err := d.dev.StdoutPipe()
	if err != nil {
		return err
	}
	if err := d.dev.Start(); err != nil {
		return err
	}
	var url string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, rest, ok := strings.Cut(lines.Text(), "psql '"); ok {
			url = strings.TrimSuffix(rest, "'")
		}
		if strings.Contains(lines.Text(), "msg=ready") {
			break // it can be used, and stopped
		}
	}
	go io.Copy(io.Discard, out) // else footfall dev blocks when the pipe is full
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return err
	}
	config.Database = "postgres"
	if d.conn, err = pgx.ConnectConfig(ctx, config); err != nil {
		return err
	}
	d.postmaster, err = parent(int(d.conn.PgConn().PID()))
	return err
}

func (d *database) stop() error {
	if d.conn != nil {
		d.conn.Close(context.Background()) // the server ends anyway
		d.conn = nil
	}
	if d.dev == nil || d.dev.Process == nil {
		return nil
	}
	if err := d.dev.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	err := d.dev.Wait()
	d.dev = nil
	if err != nil {
		return fmt.Errorf("footfall dev: %w", err)
	}
	return nil
}

// url is the DATABASE_URL of a cell's database.
func (d *database) url(name string) string {
	return "postgres://footfall@/bench_" + name + "?host=" + d.conn.Config().Host
}

// clear takes the visitors out of a database. It does not make a new one: DROP
// DATABASE begins with a checkpoint, after which every other database writes
// its pages to the WAL again.
func (d *database) clear(ctx context.Context, name string) error {
	conn, err := pgx.Connect(ctx, d.url(name))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, sql := range append([]string{"TRUNCATE visitors, days"}, history(0, true)...) {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("empty database %s: %w", name, err)
		}
	}
	return nil
}

// wal returns how many bytes of WAL the cluster has written.
func (d *database) wal(ctx context.Context) (bytes float64, err error) {
	err = d.conn.QueryRow(ctx, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8").Scan(&bytes)
	return bytes, err
}

// fill makes the database of a cell: 30 days of history, and all its visitors, of
// whom each came once today.
func (b *bench) fill(ctx context.Context, c cell) error {
	var made bool
	if err := b.db.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", "bench_"+c.Database).Scan(&made); err != nil || made || c.Program == "nethttp" {
		return err
	}
	visitors := c.Visitors
	if c.Database == "none" {
		visitors = 0
	}
	log.Printf("filling %s", c.Database)
	if _, err := b.db.conn.Exec(ctx, "CREATE DATABASE bench_"+c.Database); err != nil {
		return err
	}
	program := b.programs["footfall"]
	if c.Program == "earlier" {
		program = b.programs["earlier"]
	}
	migrate := command(ctx, program, "migrate")
	migrate.Env = b.environment(c.Database)
	if _, err := output(migrate); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, b.db.url(c.Database))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	today := time.Now().UTC().Truncate(24 * time.Hour)
	mac := hmac.New(sha256.New, []byte(b.key))
	if _, err := conn.CopyFrom(ctx, pgx.Identifier{"visitors"}, []string{"id", "visits", "first_seen", "last_seen"},
		pgx.CopyFromSlice(visitors, func(i int) ([]any, error) {
			// The address is 10.x.y.z as in visitors.lua, the hash as in internal/visitor.
			mac.Reset()
			mac.Write(binary.BigEndian.AppendUint32(nil, 10<<24|uint32(i)))
			return []any{mac.Sum(nil)[:16], int64(1), today, today}, nil
		})); err != nil {
		return err
	}
	for _, sql := range append(history(visitors, c.Program != "earlier"), "VACUUM ANALYZE", "CHECKPOINT") {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// history is 30 days, today among them, with visitors who came once today. Those
// of the days before have no rows: they are forgotten, so that verify agrees.
func history(visitors int, forgets bool) []string {
	statements := []string{
		"INSERT INTO days (day, visits, visitors, new_visitors) SELECT current_date - ago, 40000 + 37 * ago, 1000, 0 FROM generate_series(1, 29) AS ago",
		fmt.Sprintf("INSERT INTO days (day, visits, visitors, new_visitors) SELECT current_date, %d, %[1]d, %[1]d WHERE %[1]d > 0", visitors),
		fmt.Sprintf("UPDATE totals SET visits = (SELECT sum(visits) FROM days), visitors = %d, since = now() - interval '29 days'", visitors),
	}
	if forgets {
		statements = append(statements, "UPDATE days SET forgotten = visitors WHERE day < current_date",
			"UPDATE totals SET forgotten_visits = (SELECT sum(visits) FROM days WHERE day < current_date)")
	}
	return statements
}

// startRedis starts one that is as durable as PostgreSQL here.
func (b *bench) startRedis(ctx context.Context) (stop func(), err error) {
	cmd := command(context.WithoutCancel(ctx), "redis-server", "--port", "0", "--unixsocket", b.redisSocket(), "--dir", b.dir,
		"--appendonly", "yes", "--appendfsync", "always", "--save", "")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.redis = cmd.Process.Pid
	return func() {
		cmd.Process.Signal(os.Interrupt) // ended or not: nothing of it is kept
		cmd.Wait()
	}, nil
}

func (b *bench) redisSocket() string { return filepath.Join(b.dir, "redis.sock") }

// daemon returns the process of Docker's daemon: who answers on its socket; 0: there is none.
func daemon() int {
	conn, err := net.Dial("unix", "/var/run/docker.sock")
	if err != nil {
		return 0
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	raw.Control(func(fd uintptr) {
		if peer, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			pid = int(peer.Pid)
		}
	})
	return pid
}

// hasDocker makes the image of the container whose log Docker takes, if it can.
func (b *bench) hasDocker(ctx context.Context) bool {
	_, err := output(command(ctx, "sh", "-c", fmt.Sprintf("tar -C %s -c footfall.bin | docker import - footfall-bench", b.dir)))
	if err != nil || daemon() == 0 {
		log.Printf("without the cell docker: %v", err)
		return false
	}
	return true
}

// afterwards verifies what footfall counted: the rate of a program that counts
// wrongly means nothing.
func (b *bench) afterwards(ctx context.Context, r *results, chosen []cell) error {
	for _, c := range chosen {
		if c.Program != "footfall" && c.Program != "docker" {
			continue
		}
		verify := command(ctx, b.programs["footfall"], "verify")
		verify.Env = b.environment(c.Database)
		if _, err := output(verify); err != nil {
			return fmt.Errorf("%s: %w", c.Database, err)
		}
		if c.Database == "many" {
			conn, err := pgx.Connect(ctx, b.db.url(c.Database))
			if err != nil {
				return err
			}
			defer conn.Close(ctx)
			if err := conn.QueryRow(ctx, `SELECT pg_total_relation_size('visitors')::float8 / visitors FROM totals`).Scan(&r.BytesPerVisitor); err != nil {
				return err
			}
		}
	}
	return nil
}

// describe names the machine and the programs.
func (r *results) describe(ctx context.Context, b *bench) error {
	kB, err := field("/proc/meminfo", "MemTotal:")
	if err != nil {
		return err
	}
	r.Machine = fmt.Sprintf("%d cores, %.0f GiB of memory", runtime.NumCPU(), kB/(1<<20))
	r.Go = strings.TrimPrefix(runtime.Version(), "go")
	if err := b.db.conn.QueryRow(ctx, "SELECT split_part(current_setting('server_version'), ' ', 1)").Scan(&r.Postgres); err != nil {
		return err
	}
	commit, err := output(command(ctx, "git", "rev-parse", "--short", "HEAD"))
	r.Commit = strings.TrimSpace(commit)
	if err != nil {
		return err
	}
	info, err := os.Stat(b.programs["footfall"])
	if err != nil {
		return err
	}
	r.BinaryMB = float64(info.Size()) / 1e6
	return nil
}

// program is a running service.
type program struct {
	*exec.Cmd
	addr  string
	ready time.Duration // from its start to the first 200 of /readyz
	log   *os.File
	pids  []int // whose CPU time is the program's
}

func (b *bench) environment(database string) []string {
	return []string{"DATABASE_URL=" + b.db.url(database), "VISITOR_KEY=" + b.key, "REDIS=" + b.redisSocket(),
		"SQLITE=" + filepath.Join(b.dir, "sqlite"), "ANSWER=" + filepath.Join(b.dir, "answer")}
}

// start starts the service of a cell and waits until it is ready. Its log goes to
// a file, but for that of a container.
func (b *bench) start(ctx context.Context, c cell) (*program, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free
	if err != nil {
		return nil, err
	}
	p := &program{addr: ln.Addr().String()}
	ln.Close()
	database := c.Database
	if !c.postgres() {
		database = "footfall" // its page and key are prepared there
	}
	env := append(b.environment(database), "LISTEN_ADDR="+p.addr, "GOMEMLIMIT=352321536", // as deployed: 75 % of the default app_memory
		fmt.Sprintf("VISITS_A_BATCH=%.0f", cmp.Or(b.batchSize[c.Connections], b.batchSize[64], 23)))
	p.Cmd = command(ctx, b.programs[c.Program])
	if c.Program == "docker" {
		sockets := b.db.conn.Config().Host
		args := []string{"run", "--rm", "--name", "footfall-bench", "--network", "host", "--log-driver", "local", "--volume", sockets + ":" + sockets}
		for _, pair := range env {
			args = append(args, "--env", pair)
		}
		p.Cmd = command(ctx, "docker", append(args, "footfall-bench", "/footfall.bin")...)
	}
	if p.log, err = os.Create(filepath.Join(b.dir, "log")); err != nil {
		return nil, err
	}
	p.Env = append(os.Environ(), env...)
	p.Stdout, p.Stderr = p.log, p.log
	began := time.Now()
	if err := p.Start(); err != nil {
		return nil, err
	}
	for {
		if r, err := http.Get("http://" + p.addr + "/readyz"); err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				p.ready = time.Since(began)
				return p, p.find(ctx, c)
			}
		}
		if ctx.Err() != nil || time.Since(began) > 20*time.Second {
			said, _ := os.ReadFile(p.log.Name()) // an incomplete message is better than none
			return nil, errors.Join(fmt.Errorf("%s is not ready after 20 s:\n%s", c, said), p.stop())
		}
		time.Sleep(time.Millisecond)
	}
}

// find sets the processes whose time is the program's: in a container it has a
// shim and a daemon who read its log.
func (p *program) find(ctx context.Context, c cell) error {
	p.pids = []int{p.Process.Pid}
	if c.Program != "docker" {
		return nil
	}
	text, err := output(command(ctx, "docker", "inspect", "--format", "{{.State.Pid}}", "footfall-bench"))
	if err != nil {
		return err
	}
	inside, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		return err
	}
	shim, err := parent(inside)
	p.pids = []int{inside, shim, daemon()}
	return err
}

// page returns an answer of the service, which it counts.
func (p *program) page() (http.Header, []byte, error) {
	request, err := http.NewRequest(http.MethodGet, "http://"+p.addr+"/", nil)
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set("X-Forwarded-For", "10.0.0.1")
	request.Header.Set("Accept-Encoding", "identity")
	r, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = errors.New(r.Status)
	}
	return r.Header, body, err
}

func (p *program) stop() error {
	defer p.log.Close()
	if err := p.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	var exit *exec.ExitError
	if err := p.Wait(); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == -1) { // nethttp has no end of its own
		return fmt.Errorf("stop the program: %w", err)
	}
	return nil
}

// clockTicks is USER_HZ, the unit of CPU time in /proc (proc(5)); 100 on every
// Linux that Go runs on.
const clockTicks = 100

// stat returns the fields of /proc/PID/stat after the name: state is first.
func stat(pid int) ([]string, error) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(line[strings.LastIndexByte(string(line), ')')+1:])), nil
}

func parent(pid int) (int, error) {
	fields, err := stat(pid)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(fields[1])
}

// seconds sums user and system time, and with dead that of ended children.
func seconds(pid int, dead bool) float64 {
	fields, err := stat(pid)
	if err != nil {
		return 0 // it has ended: its parent counts it
	}
	count := 2
	if dead {
		count = 4
	}
	var ticks float64
	for _, field := range fields[11 : 11+count] { // utime, stime, cutime, cstime
		n, _ := strconv.ParseFloat(field, 64) // the kernel writes numbers
		ticks += n
	}
	return ticks / clockTicks
}

// processes are the postmaster and its children.
func (d *database) processes() []int {
	pids := []int{d.postmaster}
	paths, _ := filepath.Glob("/proc/[0-9]*") // the pattern is valid
	for _, path := range paths {
		pid, _ := strconv.Atoi(filepath.Base(path))
		if p, err := parent(pid); err == nil && p == d.postmaster {
			pids = append(pids, pid)
		}
	}
	return pids
}

// machineCPU is how long all cores have worked, in seconds of one core.
func machineCPU() float64 {
	text, _ := os.ReadFile("/proc/stat") // without it the column says 0
	line, _, _ := strings.Cut(string(text), "\n")
	var ticks float64
	for i, field := range strings.Fields(line)[1:] {
		if n, err := strconv.ParseFloat(field, 64); err == nil && i != 3 && i != 4 && i < 8 { // not idle, iowait; guests are in user
			ticks += n
		}
	}
	return ticks / clockTicks
}

// field reads the number after a name in a file such as /proc/PID/status.
func field(file, name string) (float64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == name {
			return strconv.ParseFloat(fields[1], 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, name)
}
