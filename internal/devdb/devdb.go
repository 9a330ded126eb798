// Package devdb runs a private PostgreSQL on a unix socket, for footfall dev and
// for tests. Nothing needs to be set up; PostgreSQL must be installed.
package devdb

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Cluster is a private PostgreSQL server on a unix socket. Its directory holds
// data, log, lock, and sockets, a link to the directory of the socket.
type Cluster struct {
	bin     string // directory of the server programs
	Dir     string
	Sockets string
	As      *syscall.Credential // the server's account, nil for our own
	lock    *os.File
}

// Start makes the cluster in dir if there is none, and starts it. A
// server that a killed run left behind is stopped first. options are settings
// of the server, name=value, without anything that a shell would change.
func Start(ctx context.Context, dir string, options ...string) (_ *Cluster, err error) {
	c := &Cluster{Dir: dir}
	if c.bin, err = findPostgres(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the cluster's directory: %w", err)
	}
	if os.Getuid() == 0 {
		if c.As, err = unprivileged(); err != nil {
			return nil, err
		}
		if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask is
			return nil, fmt.Errorf("open the cluster's directory to the server's account: %w", err)
		}
	}
	if c.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, fmt.Errorf("lock the cluster: %w", err)
	}
	// The kernel drops this lock when the process ends, however it ends.
	if err := syscall.Flock(int(c.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		c.lock.Close()
		return nil, fmt.Errorf("another footfall dev is using %s; stop it first", dir)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	if err := c.clear(); err != nil {
		return nil, err
	}
	if err := c.initialise(ctx); err != nil {
		return nil, err
	}
	if err := c.makeSockets(); err != nil {
		return nil, err
	}
	if err := c.Launch(options...); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Cluster) Data() string { return filepath.Join(c.Dir, "data") }

// URL is the DATABASE_URL of one of the cluster's databases.
func (c *Cluster) URL(database string) string {
	return "postgres://footfall@/" + database + "?host=" + url.QueryEscape(c.Sockets)
}

// Command prepares one of the server programs to run in the cluster's directory
// as the cluster's account.
func (c *Cluster) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, program), args...)
	cmd.Dir = c.Dir
	// A terminal sends ^C to footfall's process group. pg_ctl must not get it
	// while it starts or stops the server.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.As, Setpgid: true}
	return cmd
}

// Own gives path to the server's account.
func (c *Cluster) Own(path string) error {
	if c.As == nil {
		return nil
	}
	return os.Chown(path, int(c.As.Uid), int(c.As.Gid))
}

// initialise makes the data directory with a database footfall, unless it is there.
// It works under another name, so that a directory it did not finish is never used.
func (c *Cluster) initialise(ctx context.Context) error {
	if _, err := os.Stat(c.Data()); err == nil {
		return nil // of another major version? The server refuses it, and says so
	}
	half := c.Data() + ".new"
	if err := errors.Join(os.RemoveAll(half), os.Mkdir(half, 0o700), c.Own(half)); err != nil {
		return fmt.Errorf("make an empty data directory: %w", err)
	}
	// Only the server's account can reach the socket, so it needs no password.
	output, err := c.Command(ctx, "initdb", "-D", half, "-U", "footfall", "--auth=trust", "--encoding=UTF8", "--locale=C").CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, output)
	}
	create := c.Command(ctx, "postgres", "--single", "-D", half, "postgres")
	create.Stdin = strings.NewReader("CREATE DATABASE footfall\n")
	if output, err := create.CombinedOutput(); err != nil {
		return fmt.Errorf("create the database: %w\n%s", err, output)
	}
	if err := os.Rename(half, c.Data()); err != nil {
		return fmt.Errorf("take the new data directory: %w", err)
	}
	return nil
}

// makeSockets makes the socket's directory. It is a temporary one because a
// socket's path has at most 107 bytes (unix(7)); the link to it lets the next
// run remove it if this one is killed.
func (c *Cluster) makeSockets() (err error) {
	if c.Sockets, err = os.MkdirTemp("", "footfall"); err == nil {
		err = errors.Join(os.Symlink(c.Sockets, filepath.Join(c.Dir, "sockets")), c.Own(c.Sockets))
	}
	if err != nil {
		return fmt.Errorf("make a directory for the socket: %w", err)
	}
	return nil
}

// Launch starts the server and waits until it answers. No context ends that
// wait, which would leave a server behind that has not started yet.
func (c *Cluster) Launch(options ...string) error {
	log, err := os.Create(filepath.Join(c.Dir, "log"))
	if err != nil {
		return fmt.Errorf("make the server's log: %w", err)
	}
	defer log.Close() // the server has its own descriptor
	// pg_ctl gives the settings to a shell. Paths relative to the data directory
	// need no quotes.
	settings := append([]string{"listen_addresses=", "unix_socket_directories=../sockets"}, options...)
	start := c.Command(context.Background(), "pg_ctl", "start", "-w", "-s", "-D", "data", "-o", "-c "+strings.Join(settings, " -c "))
	start.Stdout, start.Stderr = log, log
	if err := start.Run(); err != nil {
		text, _ := os.ReadFile(log.Name()) // better half a message than none
		return fmt.Errorf("start PostgreSQL: %w\n%s", err, text[max(0, len(text)-2000):])
	}
	return nil
}

// clear stops the server if one runs, and removes the socket's directory: this
// run's, or those that a killed run left behind.
func (c *Cluster) clear() error {
	ctx := context.Background() // a canceled run stops its server too
	// A status other than 0 means that no server runs on the data.
	if c.Command(ctx, "pg_ctl", "status", "-D", "data").Run() == nil {
		output, err := c.Command(ctx, "pg_ctl", "stop", "-w", "-D", "data", "-m", "fast").CombinedOutput()
		if err != nil {
			return fmt.Errorf("stop PostgreSQL: %w\n%s", err, output)
		}
	}
	link := filepath.Join(c.Dir, "sockets")
	sockets, err := os.Readlink(link)
	if err != nil {
		return nil // none was made
	}
	return errors.Join(os.RemoveAll(sockets), os.Remove(link))
}

// Stop ends the server and cleans up what is not kept between runs.
func (c *Cluster) Stop() error { return errors.Join(c.clear(), c.lock.Close()) }

// postgresDirs are the directories outside PATH in which packages put the server
// programs: Debian, Red Hat, Homebrew on ARM and Intel, Postgres.app.
var postgresDirs = []string{
	"/usr/lib/postgresql/*/bin",
	"/usr/pgsql-*/bin",
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
	"/Applications/Postgres.app/Contents/Versions/*/bin",
}

// findPostgres returns the directory of PostgreSQL's server programs: the one in
// PATH, else the newest. initdb is there only if the server is.
func findPostgres() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path), nil
		}
	}
	var found []string
	for _, dir := range postgresDirs {
		paths, _ := filepath.Glob(dir + "/initdb") // the patterns are valid
		found = append(found, paths...)
	}
	if len(found) == 0 {
		return "", errors.New("PostgreSQL's server programs are not installed: run make run, which installs them, or install the package postgresql")
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return majorIn(a) - majorIn(b) })), nil
}

var digits = regexp.MustCompile(`[0-9]+`)

// majorIn returns the major version in a path such as /usr/lib/postgresql/17/bin
// or a text such as PostgreSQL 17.2: the first number, 0 without one.
func majorIn(text string) int {
	n, _ := strconv.Atoi(digits.FindString(text))
	return n
}

// unprivileged returns the account for the server where footfall runs as root,
// which initdb refuses: postgres if its package made it, else nobody.
func unprivileged() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		if account, err := user.Lookup(name); err == nil {
			as := &syscall.Credential{}
			_, err := fmt.Sscan(account.Uid+" "+account.Gid, &as.Uid, &as.Gid)
			return as, err
		}
	}
	return nil, errors.New("run PostgreSQL as root: neither the account postgres nor nobody exists; run as an ordinary user")
}

// DefaultDir is where the development cluster lives. Root's own cache directory cannot
// be entered by the account that the server must run as, so root has another.
func DefaultDir() (string, error) {
	if os.Getuid() == 0 && os.Getenv("XDG_CACHE_HOME") == "" {
		return "/var/cache/footfall", nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w", err)
	}
	return filepath.Join(cache, "footfall"), nil
}
