package main

import (
	"bufio"
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
func startDatabase(ctx context.Context, footfall, dir string, more []string) (*database, error) {
	d := &database{}
	if err := d.start(ctx, footfall, dir); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	for _, setting := range append(settings, more...) {
		if _, err := d.conn.Exec(ctx, "ALTER SYSTEM SET "+setting); err != nil {
			return nil, errors.Join(err, d.stop())
		}
	}
	if err := d.stop(); err != nil {
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
		if rest, ok := strings.CutPrefix(lines.Text(), "psql '"); ok {
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

// url is the DATABASE_URL of a database of the cluster.
func (d *database) url(name string) string {
	return "postgres://footfall@/" + name + "?host=" + d.conn.Config().Host
}

func (d *database) recreate(ctx context.Context, name, template string) error {
	if _, err := d.conn.Exec(ctx, "DROP DATABASE IF EXISTS "+name); err != nil {
		return err
	}
	if _, err := d.conn.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE "+template); err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	return nil
}

// clear empties a database that fill has made. It does not make a new one: DROP
// DATABASE begins with a checkpoint, after which every other database writes
// its pages to the WAL again.
func (d *database) clear(ctx context.Context, name string) error {
	conn, err := pgx.Connect(ctx, d.url(name))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "TRUNCATE visitors, days; UPDATE totals SET visits = 0, visitors = 0"); err != nil {
		return fmt.Errorf("empty database %s: %w", name, err)
	}
	return nil
}

// traffic returns how many bytes of WAL the cluster has written, and how many
// pages it has read into its buffers. A busy connection reports the latter once
// a second.
func (d *database) traffic(ctx context.Context) (wal, reads float64, err error) {
	err = d.conn.QueryRow(ctx, `
		SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8, sum(blks_read)::float8
		FROM pg_stat_database`).Scan(&wal, &reads)
	return wal, reads, err
}

// query runs a query of one row and one number in a database.
func (d *database) query(ctx context.Context, name, sql string) (number float64, err error) {
	conn, err := pgx.Connect(ctx, d.url(name))
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	err = conn.QueryRow(ctx, sql).Scan(&number)
	return number, err
}

// fill makes the database of a cell, with all its visitors in it.
func (b *bench) fill(ctx context.Context, c cell) error {
	visitors := c.Visitors
	if c.State == empty {
		visitors = 0
	}
	if made, err := b.db.exists(ctx, c.Database); err != nil || made {
		return err
	}
	if visitors == many { // a gigabyte, for one cell: not copied
		return b.store(ctx, c.Database, visitors)
	}
	template := fmt.Sprintf("visitors_%d", visitors)
	made, err := b.db.exists(ctx, template)
	if err == nil && !made {
		err = b.store(ctx, template, visitors)
	}
	if err != nil {
		return fmt.Errorf("store %d visitors: %w", visitors, err)
	}
	return b.db.recreate(ctx, c.Database, template)
}

func (d *database) exists(ctx context.Context, name string) (found bool, err error) {
	err = d.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&found)
	return found, err
}

// store makes a database with visitors, each of whom came once, today.
func (b *bench) store(ctx context.Context, name string, visitors int) error {
	log.Printf("storing %d visitors", visitors)
	if _, err := b.db.conn.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		return err
	}
	migrate := command(ctx, b.programs["footfall"], "migrate")
	migrate.Env = b.environment(name)
	if _, err := output(migrate); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, b.db.url(name))
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
	if visitors > 0 {
		if _, err := conn.Exec(ctx, "UPDATE totals SET visits = $1, visitors = $1", visitors); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, "INSERT INTO days (day, visits, visitors, new_visitors) VALUES ($1, $2, $2, $2)", today, visitors); err != nil {
			return err
		}
	}
	if _, err := conn.Exec(ctx, "VACUUM ANALYZE"); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "CHECKPOINT")
	return err
}

// afterwards verifies the databases and reads what the rounds left in them.
func (b *bench) afterwards(ctx context.Context, r *results, chosen []cell) error {
	for _, c := range chosen {
		if _, known := r.HOT[c.Database]; known || c.Program != "footfall" || c.State == empty {
			continue
		}
		hot, err := b.db.query(ctx, c.Database, `
			SELECT COALESCE(n_tup_hot_upd::float8 / NULLIF(n_tup_upd, 0), 0)
			FROM pg_stat_user_tables
			WHERE relname = 'visitors'`)
		if err != nil {
			return err
		}
		r.HOT[c.Database] = hot
		// The rate of a program that counts wrongly means nothing.
		verify := command(ctx, b.programs["footfall"], "verify")
		verify.Env = b.environment(c.Database)
		if _, err := output(verify); err != nil {
			return fmt.Errorf("%s: %w", c.Database, err)
		}
		if c.Visitors == many {
			if r.BytesPerVisitor, err = b.db.query(ctx, c.Database,
				`SELECT pg_total_relation_size('visitors')::float8 / visitors FROM totals`); err != nil {
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
}

func (b *bench) environment(database string) []string {
	return []string{"DATABASE_URL=" + b.db.url(database), "VISITOR_KEY=" + b.key}
}

// start starts the service and waits until it is ready. Its log goes to a
// file, as in production.
func (b *bench) start(ctx context.Context, name, database string, env ...string) (*program, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free
	if err != nil {
		return nil, err
	}
	p := &program{addr: ln.Addr().String(), Cmd: command(ctx, b.programs[name])}
	ln.Close()
	if p.log, err = os.Create(filepath.Join(b.dir, "log")); err != nil {
		return nil, err
	}
	p.Env = append(b.environment(database), "LISTEN_ADDR="+p.addr)
	p.Env = append(p.Env, env...)
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
				return p, nil
			}
		}
		if ctx.Err() != nil || time.Since(began) > 10*time.Second {
			said, _ := os.ReadFile(p.log.Name()) // an incomplete message is better than none
			return nil, errors.Join(fmt.Errorf("%s is not ready after 10 s:\n%s", name, said), p.stop())
		}
		time.Sleep(time.Millisecond)
	}
}

func (p *program) stop() error {
	defer p.log.Close()
	if err := p.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := p.Wait(); err != nil {
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

// waited is how long the threads of processes could run and got no core, in
// seconds: the second field of schedstat, in ns (the kernel's
// Documentation/scheduler/sched-stats.rst).
func waited(pids ...int) float64 {
	var sum float64
	for _, pid := range pids {
		paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid)) // the pattern is valid
		for _, path := range paths {
			if text, err := os.ReadFile(path); err == nil { // else the thread has ended
				ns, _ := strconv.ParseFloat(strings.Fields(string(text))[1], 64) // the kernel writes numbers
				sum += ns / 1e9
			}
		}
	}
	return sum
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
