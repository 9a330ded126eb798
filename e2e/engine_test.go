//go:build e2e

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// label marks everything a run makes with the process that made it.
const label = "footfall.e2e.pid"

var pid = strconv.Itoa(os.Getpid())

// setUp makes the engine and every image ready, once per run. Every test begins with it.
func setUp(t *testing.T) {
	t.Helper()
	require.NoError(t, prepare())
}

var prepare = sync.OnceValue(func() error {
	if err := step("container engine", startEngine); err != nil {
		return err
	}
	sweep()
	// In a cgroup of version 1 all containers together weigh as much as one process outside.
	const shares = "/sys/fs/cgroup/cpu/docker/cpu.shares"
	if before, err := os.ReadFile(shares); err == nil {
		os.WriteFile(shares, []byte("4096"), 0)
		atEnd(func() { os.WriteFile(shares, before, 0) })
	}
	atEnd(func() { remove(label + "=" + pid) })
	return step("images", buildImages)
})

// sh runs a program and returns its trimmed output; the error carries what it printed to stderr.
func sh(name string, args ...string) (string, error) { return shIn(nil, name, args...) }

// shIn is sh with a standard input.
func shIn(stdin []byte, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return strings.TrimSpace(out.String()), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

func docker(args ...string) (string, error) { return sh("docker", args...) }

// install gets the packages whose command is not there yet, given as command=package.
func install(commands ...string) error {
	var missing []string
	for _, c := range commands {
		command, pkg, _ := strings.Cut(c, "=")
		if _, err := exec.LookPath(command); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return step("apt-get install "+strings.Join(missing, " "), func() error {
		apt := []string{"-q", "-o", "DPkg::Lock::Timeout=300"}
		if _, err := sh("apt-get", append(apt, "update")...); err != nil {
			return err
		}
		os.Setenv("DEBIAN_FRONTEND", "noninteractive")
		_, err := sh("apt-get", append(append(apt, "install", "-y", "--no-install-recommends"), missing...)...)
		return err
	})
}

// startEngine uses the engine that answers, or starts one that keeps everything in one directory, and
// stops it at the end.
func startEngine() error {
	if _, err := docker("info"); err == nil {
		return install("mmdebstrap=mmdebstrap", "ssh-keygen=openssh-client")
	}
	err := install("dockerd=docker.io", "iptables=iptables", "mmdebstrap=mmdebstrap", "ssh-keygen=openssh-client")
	if err != nil {
		return err
	}
	if err := install("docker=docker-cli"); err != nil { // a separate package since Debian 13
		return err
	}
	const home = "/var/tmp/footfall-e2e"
	socket := "unix://" + home + "/docker.sock"
	os.Setenv("DOCKER_HOST", socket)
	if err := os.MkdirAll(home, 0o711); err != nil {
		return err
	}
	log, err := os.Create(home + "/dockerd.log")
	if err != nil {
		return err
	}
	defer log.Close()
	engine := exec.Command("dockerd", "--host", socket, "--data-root", home+"/data",
		"--exec-root", home+"/exec", "--pidfile", home+"/dockerd.pid")
	engine.Stdout, engine.Stderr = log, log
	// Its own process group: Ctrl-C reaches the tests alone, which then need the engine to clean up.
	engine.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := engine.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- engine.Wait() }()
	atEnd(func() {
		engine.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	for deadline := time.Now().Add(time.Minute); ; {
		if _, err = docker("info"); err == nil {
			return nil
		}
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("dockerd ended (%v), see %s", err, log.Name())
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("dockerd does not answer, see %s: %w", log.Name(), err)
		}
	}
}

// sweep removes what runs left behind that were killed before they could clean up.
func sweep() {
	for filter, prefix := range map[string]string{label: "", composeLabel: "footfall-e2e-"} {
		format := `{{.Label "` + filter + `"}}`
		owners, _ := docker("ps", "-a", "--filter", "label="+filter, "--format", format)
		for _, kind := range []string{"network", "volume"} {
			more, _ := docker(kind, "ls", "--filter", "label="+filter, "--format", format)
			owners += "\n" + more
		}
		for _, value := range strings.Fields(owners) {
			owner, ours := strings.CutPrefix(value, prefix)
			if ours && !alive(owner) {
				remove(filter + "=" + value)
			}
		}
	}
	sweepDevices()
}

// alive reports whether the run with that process id still goes on.
func alive(pid string) bool {
	comm, err := os.ReadFile("/proc/" + pid + "/comm")
	return err == nil && strings.HasPrefix(string(comm), "e2e.test")
}

// remove deletes the containers, their anonymous volumes, the networks and the volumes with a label.
func remove(filter string) {
	if ids, _ := docker("ps", "-aq", "--filter", "label="+filter); ids != "" {
		docker(append([]string{"rm", "-f", "-v"}, strings.Fields(ids)...)...)
	}
	for _, kind := range []string{"network", "volume"} {
		if ids, _ := docker(kind, "ls", "-q", "--filter", "label="+filter); ids != "" {
			docker(append([]string{kind, "rm"}, strings.Fields(ids)...)...)
		}
	}
}

// Images of the harness carry the hash of what they are made from in this label; with a different
// hash they are made again. Images of the same name without the label are the real ones: used as is.
const recipeLabel = "footfall.e2e.recipe"

const (
	hostImage       = "footfall-e2e-host"
	controllerImage = "footfall-e2e-controller"
)

func buildImages() error {
	if err := build("debian:trixie", "", debian); err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i, b := range []func() error{
		func() error { return build(controllerImage, "controller", dockerfile) },
		func() error { return build(hostImage, "host", dockerfile) },
		func() error { return build("postgres:17", "postgres", dockerfile) },
		func() error { return build("golang:"+strings.TrimPrefix(runtime.Version(), "go"), "golang", golang) },
	} {
		wg.Go(func() { errs[i] = b() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// build makes image name from e2e/images/dir unless the engine has it.
func build(name, dir string, make func(name, dir, recipe string) error) error {
	hash := sha256.New()
	if dir != "" {
		dir = filepath.Join(repoDir(), "e2e", "images", dir)
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			fmt.Fprintf(hash, "%s %d\n%s", filepath.Base(path), len(text), text)
			return err
		})
		if err != nil {
			return err
		}
	}
	recipe := hex.EncodeToString(hash.Sum(nil))[:12]
	have, err := docker("image", "inspect", "-f", `{{index .Config.Labels "`+recipeLabel+`"}}`, name)
	if err == nil && (have == recipe || have == "") {
		return nil
	}
	return step("image "+name, func() error { return make(name, dir, recipe) })
}

func dockerfile(name, dir, recipe string) error {
	// The engine's own builder: Debian 12's engine has no other.
	_, err := sh("env", "DOCKER_BUILDKIT=0", "docker", "build", "-q", "--label", recipeLabel+"="+recipe, "-t", name, dir)
	return err
}

// debian makes debian:trixie, which trusts what this machine trusts: where a company's gateway
// opens TLS, "go mod download" in an image must get through it as it does here.
func debian(name, _, recipe string) error {
	args := []string{"--quiet", "--variant=minbase", "--include=ca-certificates", "--format=tar"}
	extra, _ := filepath.Glob("/usr/local/share/ca-certificates/*.crt")
	for _, crt := range extra {
		args = append(args, "--customize-hook=copy-in "+crt+" /usr/local/share/ca-certificates")
	}
	if extra != nil {
		args = append(args, `--customize-hook=chroot "$1" update-ca-certificates`)
	}
	bootstrap := exec.Command("mmdebstrap", append(args, "trixie", "-")...)
	load := exec.Command("docker", "import", "--change", "CMD [\"bash\"]", "--change", "LABEL "+recipeLabel+"="+recipe, "-", name)
	var errs bytes.Buffer
	bootstrap.Stderr, load.Stderr = &errs, &errs
	pipe, err := bootstrap.StdoutPipe()
	if err != nil {
		return err
	}
	load.Stdin = pipe
	if err := load.Start(); err != nil {
		return err
	}
	err = bootstrap.Run()
	if err = errors.Join(err, load.Wait()); err != nil {
		return fmt.Errorf("mmdebstrap | docker import: %w: %s", err, errs.String())
	}
	return nil
}

// golang makes an image from the Go that runs this test: go.mod's toolchain, which the Dockerfile names.
func golang(name, dir, recipe string) error {
	goroot, err := sh("go", "env", "GOROOT")
	if err != nil {
		return err
	}
	context, err := os.MkdirTemp("", "footfall-e2e-golang-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(context)
	// -L: a distribution's GOROOT is partly symbolic links.
	if _, err := sh("cp", "-rL", goroot, context+"/go"); err != nil {
		return err
	}
	if _, err := sh("cp", dir+"/Dockerfile", context); err != nil {
		return err
	}
	return dockerfile(name, context, recipe)
}
