//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// shared is a directory that the harness and the controller see under the same path.
var shared = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "footfall-e2e-")
	if err != nil {
		panic(err)
	}
	atEnd(func() { os.RemoveAll(dir) })
	return dir
})

func controllerName() string { return "footfall-e2e-" + pid + "-controller" }

// controller starts (once) the container in which Ansible and its like run. It sees the repository,
// read-only, and the shared directory under their own paths.
var controller = sync.OnceValues(func() (string, error) {
	_, err := docker("run", "--detach", "--init", "--name", controllerName(), "--hostname", "controller", "--label", label+"="+pid,
		"--cap-add", "NET_ADMIN", "--dns-opt", "timeout:1", "--dns-opt", "attempts:1", // it has no way to a resolver
		"--volume", repoDir()+":"+repoDir()+":ro", "--volume", shared()+":"+shared(),
		"--volume", engineSocket()+":/var/run/docker.sock", "--workdir", repoDir(), controllerImage)
	if err == nil {
		err = isolateController()
	}
	return controllerName(), err
})

func engineSocket() string {
	if s, ok := strings.CutPrefix(os.Getenv("DOCKER_HOST"), "unix://"); ok {
		return s
	}
	return "/var/run/docker.sock"
}

// isolateController removes the controller's default route: the addresses that an emulated cloud
// makes up belong to real hosts on the internet, which the tests must not reach.
func isolateController() error {
	_, err := docker("exec", controllerName(), "sh", "-c", "while ip route del default 2>/dev/null; do :; done; ! ip route | grep default")
	return err
}

func joinController(t *testing.T, n network) {
	t.Helper()
	name, err := controller()
	require.NoError(t, err)
	_, err = docker("network", "connect", n.name, name)
	require.NoError(t, err)
	require.NoError(t, isolateController())
}

// addressIn is the controller's address in a network.
func addressIn(t *testing.T, n network) string {
	t.Helper()
	ip, err := docker("inspect", "-f", `{{(index .NetworkSettings.Networks "`+n.name+`").IPAddress}}`, controllerName())
	require.NoError(t, err)
	return ip
}

// A recap is one host's line under PLAY RECAP.
type recap struct {
	OK, Changed, Unreachable, Failed int
}

// A play is a finished run of ansible-playbook.
type play struct {
	Recap   map[string]recap
	Changed int      // over all hosts
	Failed  int      // over all hosts, unreachable ones with them
	Tasks   []string // the tasks that changed something: "role : task [host]"
	Output  string
	Log     string // file with the output
	Took    time.Duration
	Err     error // ansible-playbook's exit
}

// A run of Ansible's environment, for an emulated cloud and the like: NAME=value.
type environ []string

// tryAnsible runs a playbook of ansible/ in the controller with the repository's own ansible.cfg
// and keeps its output in e2e/out. inventory is a path, or "" for what ansible.cfg says.
func tryAnsible(t *testing.T, env environ, inventory, playbook string, args ...string) play {
	t.Helper()
	setUp(t)
	name, err := controller()
	require.NoError(t, err)
	command := []string{"exec", "--workdir", filepath.Join(repoDir(), "ansible"),
		"--env", "ANSIBLE_FORCE_COLOR=0", "--env", "ANSIBLE_NOCOWS=1",
		"--env", "ANSIBLE_CALLBACKS_ENABLED=ansible.posix.profile_tasks"} // the log ends with the slowest tasks
	for _, e := range env {
		command = append(command, "--env", e)
	}
	command = append(command, name, "ansible-playbook")
	if inventory != "" {
		command = append(command, "--inventory", inventory)
	}
	command = append(append(command, playbook), args...)

	p := play{Log: logFile(t)}
	file, err := os.Create(p.Log)
	require.NoError(t, err)
	defer file.Close()
	fmt.Fprintf(file, "ansible-playbook %s %s\n", playbook, strings.Join(args, " "))
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "docker", command...)
	both := &lines{file: file, buf: &out}
	cmd.Stdout, cmd.Stderr = both, both
	begin := time.Now()
	p.Err = cmd.Run()
	p.Took = time.Since(begin)
	p.Output = out.String()
	p.parse()
	progress("%s, %s: changed=%d failed=%d in %.1f s", t.Name(), filepath.Base(playbook), p.Changed, p.Failed, p.Took.Seconds())
	return p
}

// ansible is tryAnsible for a run that has to succeed on a fleet.
func (f *fleet) ansible(t *testing.T, playbook string, args ...string) play {
	t.Helper()
	p := tryAnsible(t, nil, f.inventory, playbook, args...)
	p.require(t)
	return p
}

// require fails the test, with the end of the output, unless the run succeeded.
func (p play) require(t *testing.T) {
	t.Helper()
	if p.Err != nil || p.Failed > 0 {
		t.Fatalf("ansible-playbook: %v, log %s\n%s", p.Err, p.Log, tail(p.Output, 90))
	}
}

// changedOnly fails the test if a task outside of the role changed something.
func (p play) changedOnly(t *testing.T, role string) {
	t.Helper()
	for _, task := range p.Tasks {
		assert.True(t, strings.HasPrefix(task, role+" : "), "%s, want only the role %s", task, role)
	}
}

var (
	recapLine   = regexp.MustCompile(`^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)`)
	taskLine    = regexp.MustCompile(`^(?:TASK|RUNNING HANDLER) \[(.*)\]`)
	changedLine = regexp.MustCompile(`^changed: \[([^\]]+)\]`)
)

func (p *play) parse() {
	p.Recap = map[string]recap{}
	task := ""
	for line := range strings.Lines(p.Output) {
		if m := taskLine.FindStringSubmatch(line); m != nil {
			task = m[1]
		}
		if m := changedLine.FindStringSubmatch(line); m != nil {
			p.Tasks = append(p.Tasks, task+" ["+m[1]+"]")
		}
		if m := recapLine.FindStringSubmatch(line); m != nil {
			var n [4]int
			for i := range n {
				n[i], _ = strconv.Atoi(m[2+i])
			}
			p.Recap[m[1]] = recap{n[0], n[1], n[2], n[3]}
			p.Changed += n[1]
			p.Failed += n[2] + n[3]
		}
	}
	if len(p.Recap) == 0 && p.Err == nil {
		p.Err = fmt.Errorf("no PLAY RECAP in the output")
	}
}

var logs struct {
	sync.Mutex
	n int
}

// logFile is a new file in e2e/out, numbered in the order of the run.
func logFile(t *testing.T) string {
	logs.Lock()
	defer logs.Unlock()
	logs.n++
	return filepath.Join(outDir(), fmt.Sprintf("%02d-%s.log", logs.n, strings.NewReplacer("/", "-", "'", "").Replace(t.Name())))
}

// lines writes to both, one write at a time: a program's two outputs share them.
type lines struct {
	sync.Mutex
	file *os.File
	buf  *bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.Lock()
	defer l.Unlock()
	l.buf.Write(p)
	return l.file.Write(p)
}

func tail(text string, n int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-n):], "\n")
}
