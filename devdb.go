package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// dev serves with a PostgreSQL of its own, so that a developer needs to set up
// nothing. Its data stay in dir between runs.
func dev(ctx context.Context, dir string, getenv func(string) string, out io.Writer) (err error) {
	withDatabase := func(databaseURL string) func(string) string {
		return func(key string) string {
			switch key {
			case "DATABASE_URL":
				return databaseURL
			case "DATABASE_URL_FILE":
				return ""
			case "LOG_FORMAT":
				if getenv(key) == "" {
					return "text"
				}
			}
			return getenv(key)
		}
	}
	// Wrong settings and an address in use are told before anything is started.
	cfg, err := loadConfig(withDatabase("postgres://localhost"))
	if err != nil {
		return &usageError{err}
	}
	ln, err := listen(ctx, cfg.ListenAddr)
	if err != nil {
		return err
	}
	ln.Close()
	cluster, err := startCluster(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.stop()) }()
	if cfg, err = loadConfig(withDatabase(cluster.url("footfall"))); err != nil {
		return err
	}
	if err = cluster.createDatabase(ctx, "footfall"); err != nil {
		return err
	}
	fmt.Fprintf(out, "data in %s\npsql '%s'\n%s\n", dir, cluster.url("footfall"), howToOpen(cfg.ListenAddr))
	return serve(ctx, cfg, out)
}

// howToOpen tells a developer where the page is.
func howToOpen(listenAddr string) string {
	network, addr := dialAddr(listenAddr)
	if network == "unix" {
		return fmt.Sprintf("curl --unix-socket %s http://footfall/", addr)
	}
	return fmt.Sprintf("open http://%s", addr)
}

// devDir is where the development cluster lives. Root's own cache folder cannot
// be entered by the account that the server must run as, so root has another.
func devDir() (string, error) {
	if os.Getuid() == 0 && os.Getenv("XDG_CACHE_HOME") == "" {
		return "/var/cache/footfall", nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	return filepath.Join(cache, "footfall"), nil
}

// cluster is a private PostgreSQL server on a unix socket.
type cluster struct {
	bin     string // folder of the server programs
	dir     string // holds data, lock and log
	sockets string // short: a socket's path has at most 107 bytes (unix(7))
	as      *syscall.Credential
	lock    *os.File
	server  *exec.Cmd
	exited  chan struct{} // closed when server has ended
}

// startCluster makes the cluster in dir if there is none, and starts it. A
// server that a killed run left behind is stopped first. options are given to
// the server as -c name=value.
func startCluster(ctx context.Context, dir string, options ...string) (_ *cluster, err error) {
	c := &cluster{dir: dir}
	if c.bin, err = findPostgres(); err != nil {
		return nil, err
	}
	if os.Getuid() == 0 {
		if c.as, err = unprivileged(); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the cluster's folder: %w", err)
	}
	if c.as != nil { // whatever the umask, the server's account must get in
		if err := os.Chmod(dir, 0o755); err != nil {
			return nil, fmt.Errorf("open the cluster's folder to the server's account: %w", err)
		}
	}
	if c.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, fmt.Errorf("lock the cluster: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	// The kernel drops this lock when the process ends, however it ends.
	if err := syscall.Flock(int(c.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("another footfall dev is using %s; stop it first", dir)
	}
	// Sockets stand in a folder of their own, whose path is short.
	if c.sockets, err = os.MkdirTemp("", "footfall"); err != nil {
		return nil, fmt.Errorf("make a folder for the socket: %w", err)
	}
	if err := c.own(c.sockets); err != nil {
		return nil, err
	}
	if err := c.initialise(ctx); err != nil {
		return nil, err
	}
	if err := c.takeOverServer(ctx); err != nil {
		return nil, err
	}
	if err := c.launch(ctx, options...); err != nil {
		return nil, err
	}
	return c, nil
}

// launch starts the server and waits until it answers.
func (c *cluster) launch(ctx context.Context, options ...string) error {
	args := []string{"-D", c.data(), "-k", c.sockets, "-c", "listen_addresses="}
	for _, option := range options {
		args = append(args, "-c", option)
	}
	log, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		return fmt.Errorf("open the server's log: %w", err)
	}
	defer log.Close() // the server has its own
	server := c.command(context.WithoutCancel(ctx), "postgres", args...)
	server.Stdout, server.Stderr = log, log
	// A terminal's ^C is for us: we stop the server when we are done with it.
	server.SysProcAttr.Setpgid = true
	if err := server.Start(); err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	exited := make(chan struct{})
	c.server, c.exited = server, exited
	go func() {
		server.Wait() // how it ended is in its log
		close(exited)
	}()
	return c.waitReady(ctx)
}

func (c *cluster) data() string { return filepath.Join(c.dir, "data") }

// url is the DATABASE_URL of one of the cluster's databases.
func (c *cluster) url(database string) string {
	return "postgres://footfall@/" + database + "?host=" + url.QueryEscape(c.sockets)
}

// command prepares one of the server programs to run as the cluster's account.
func (c *cluster) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, program), args...)
	cmd.Dir = c.sockets // a folder that the account may enter
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.as}
	return cmd
}

// own gives path to the account that the server runs as.
func (c *cluster) own(path string) error {
	if c.as == nil {
		return nil
	}
	if err := os.Chown(path, int(c.as.Uid), int(c.as.Gid)); err != nil {
		return fmt.Errorf("give %s to the server's account: %w", path, err)
	}
	return nil
}

// initialise runs initdb where that was not done, or not to its end.
func (c *cluster) initialise(ctx context.Context) error {
	complete := filepath.Join(c.dir, "complete")
	if _, err := os.Stat(complete); err == nil {
		return c.sameMajor()
	}
	if err := os.RemoveAll(c.data()); err != nil {
		return fmt.Errorf("remove a half-made cluster: %w", err)
	}
	if err := os.Mkdir(c.data(), 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	if err := c.own(c.data()); err != nil {
		return err
	}
	// Only this account can reach the socket, so no password is needed.
	output, err := c.command(ctx, "initdb", "-D", c.data(), "-U", "footfall", "--auth=trust", "--encoding=UTF8", "--locale=C").CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, output)
	}
	if err := os.WriteFile(complete, nil, 0o644); err != nil {
		return fmt.Errorf("note that initdb is done: %w", err)
	}
	return nil
}

// sameMajor refuses data that another major version of PostgreSQL made.
func (c *cluster) sameMajor() error {
	made, err := os.ReadFile(filepath.Join(c.data(), "PG_VERSION"))
	if err != nil {
		return fmt.Errorf("read the cluster's version: %w", err)
	}
	output, err := exec.Command(filepath.Join(c.bin, "postgres"), "--version").Output()
	if err != nil {
		return fmt.Errorf("ask PostgreSQL for its version: %w", err)
	}
	has, want := string(output), strings.TrimSpace(string(made))
	if !strings.Contains(has, " "+want+".") && !strings.Contains(has, " "+want+"beta") {
		return fmt.Errorf("%s was made by PostgreSQL %s, but %s is installed: install %s, or remove the folder to begin anew", c.dir, want, strings.TrimSpace(has), want)
	}
	return nil
}

// takeOverServer stops the server that a killed run left behind.
func (c *cluster) takeOverServer(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(c.data(), "postmaster.pid")); err != nil {
		return nil // the usual case: none
	}
	// Says 3 when no server runs: then the pid file is stale, which PostgreSQL
	// itself finds out.
	if err := c.command(ctx, "pg_ctl", "status", "-D", c.data()).Run(); err != nil {
		return nil
	}
	output, err := c.command(ctx, "pg_ctl", "stop", "-D", c.data(), "-m", "fast", "-w").CombinedOutput()
	if err != nil {
		return fmt.Errorf("stop the server of an earlier run: %w\n%s", err, output)
	}
	return nil
}

// waitReady returns when the server answers.
func (c *cluster) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	db, err := sql.Open("pgx", c.url("postgres"))
	if err != nil {
		return err
	}
	defer db.Close()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-c.exited:
			log, _ := os.ReadFile(filepath.Join(c.dir, "log")) // better half a message than none
			return fmt.Errorf("start PostgreSQL: it ended at once:\n%s", log)
		case <-ctx.Done():
			return fmt.Errorf("start PostgreSQL: no answer: %w", err)
		case <-tick.C:
		}
	}
}

// createDatabase makes a database unless it exists.
func (c *cluster) createDatabase(ctx context.Context, name string) error {
	db, err := sql.Open("pgx", c.url("postgres"))
	if err != nil {
		return err
	}
	defer db.Close()
	var exists bool
	if err := db.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, name).Scan(&exists); err != nil {
		return fmt.Errorf("look for database %s: %w", name, err)
	}
	if exists {
		return nil
	}
	if _, err := db.ExecContext(ctx, `CREATE DATABASE `+name); err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	return nil
}

// stop ends the server and cleans up what is not to be kept.
func (c *cluster) stop() error {
	var err error
	if c.server != nil {
		// SIGINT is PostgreSQL's fast shutdown: it ends sessions and checkpoints.
		if err = c.server.Process.Signal(os.Interrupt); errors.Is(err, os.ErrProcessDone) {
			err = nil
		}
		select {
		case <-c.exited:
		case <-time.After(30 * time.Second):
			err = errors.Join(errors.New("stop PostgreSQL: it takes longer than 30s, killed"), c.server.Process.Kill())
		}
	}
	if c.sockets != "" {
		err = errors.Join(err, os.RemoveAll(c.sockets))
	}
	return errors.Join(err, c.lock.Close())
}

// postgresDirs are where packages put the server programs that they keep out
// of PATH: Debian, Red Hat, Homebrew on ARM and Intel, Postgres.app.
var postgresDirs = []string{
	"/usr/lib/postgresql/*/bin",
	"/usr/pgsql-*/bin",
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
	"/Applications/Postgres.app/Contents/Versions/*/bin",
}

// findPostgres returns the folder of PostgreSQL's server programs, the newest
// where there are several.
func findPostgres() (string, error) {
	var dirs []string
	if path, err := exec.LookPath("initdb"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	for _, pattern := range postgresDirs {
		found, _ := filepath.Glob(pattern) // the patterns are valid
		slices.SortFunc(found, func(a, b string) int { return majorOf(b) - majorOf(a) })
		dirs = append(dirs, found...)
	}
	for _, dir := range dirs {
		if complete(dir, "initdb", "pg_ctl", "postgres") {
			return dir, nil
		}
	}
	return "", errors.New("PostgreSQL's server programs are not installed: run make run, which installs them, or install the package postgresql")
}

// complete tells whether dir has all programs.
func complete(dir string, programs ...string) bool {
	for _, program := range programs {
		if _, err := exec.LookPath(filepath.Join(dir, program)); err != nil {
			return false
		}
	}
	return true
}

// majorOf returns the number in a path such as /usr/lib/postgresql/17/bin.
func majorOf(dir string) int {
	digits := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, dir)
	n, _ := strconv.Atoi(digits) // none: 0, the last choice
	return n
}

// unprivileged returns the account for the server when we are root, which
// initdb refuses: postgres if the package made it, else nobody.
func unprivileged() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		account, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(account.Uid, 10, 32)
		if err != nil {
			continue
		}
		gid, err := strconv.ParseUint(account.Gid, 10, 32)
		if err != nil {
			continue
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("run PostgreSQL as root: neither the account postgres nor nobody exists; run as an ordinary user")
}
