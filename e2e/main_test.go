//go:build e2e

// Package e2e drives what an operator drives, on real parts: hosts with systemd and sshd, Ansible,
// an EC2 API, an ACME authority, a container engine, a browser. Root and Debian's packages are all
// it needs:
//
//	go test -tags e2e -timeout 75m -v ./e2e
//
// What is expensive is made once and shared: images per engine (kept, found again by the hash of
// what they are made from), the controller per run, converged hosts for all that happens to a running
// service (TestService). One test at a time: two playbooks at once take twice as long each on two cores,
// and what is measured is measured alone. Traffic stays in the run's own networks. At the end a table of
// figures is printed and kept in e2e/out.
package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "e2e: run as root: hosts and the engine need it")
		os.Exit(1)
	}

	// go test ends a run that takes too long without a word to us: end it a little earlier.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	if limit := flag.Lookup("test.timeout").Value.(flag.Getter).Get().(time.Duration); limit > time.Minute {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit-30*time.Second, errors.New("the time of -timeout is nearly over"))
		defer cancel()
	}
	cut := context.AfterFunc(ctx, func() {
		fmt.Fprintln(os.Stderr, "e2e: cleaning up:", context.Cause(ctx))
		cleanUp()
		os.Exit(1)
	})
	code := m.Run()
	if !cut() {
		select {} // cut short: the function above ends the program
	}
	stop() // a signal now ends the program at once
	printFigures()
	cleanUp()
	os.Exit(code)
}

var started = time.Now()

// progress prints one line with the seconds since the run began.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
}

// step runs do, with a progress line when it ends.
func step(name string, do func() error) error {
	begin := time.Now()
	err := do()
	result := "done"
	if err != nil {
		result = "FAILED"
	}
	progress("%s: %s in %.1f s", name, result, time.Since(begin).Seconds())
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// undo holds what cleanUp does, last added first.
var undo struct {
	sync.Mutex
	steps []func()
	once  sync.Once
}

func atEnd(do func()) {
	undo.Lock()
	defer undo.Unlock()
	undo.steps = append(undo.steps, do)
}

func cleanUp() {
	undo.once.Do(func() {
		undo.Lock()
		defer undo.Unlock()
		for i := len(undo.steps) - 1; i >= 0; i-- {
			undo.steps[i]()
		}
	})
}

// A figure is one line of the table at the end of the run.
type figure struct {
	step             string
	requests, failed int
	seconds          float64
	note             string
}

var figures struct {
	sync.Mutex
	rows []figure
}

// record adds a line to the table: requests and failed are 0 for a step without load.
func record(step string, requests, failed int, took time.Duration, note string, args ...any) {
	figures.Lock()
	defer figures.Unlock()
	figures.rows = append(figures.rows, figure{step, requests, failed, took.Seconds(), fmt.Sprintf(note, args...)})
}

func printFigures() {
	figures.Lock()
	defer figures.Unlock()
	if len(figures.rows) == 0 {
		return
	}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "| step\t| requests\t| failed\t| seconds\t| note\t|")
	fmt.Fprintln(w, "| ---\t| ---:\t| ---:\t| ---:\t| ---\t|")
	for _, f := range figures.rows {
		requests, failed := "", ""
		if f.requests > 0 {
			requests, failed = fmt.Sprint(f.requests), fmt.Sprint(f.failed)
		}
		fmt.Fprintf(w, "| %s\t| %s\t| %s\t| %.1f\t| %s\t|\n", f.step, requests, failed, f.seconds, f.note)
	}
	fmt.Fprintf(w, "| whole run\t| \t| \t| %.1f\t| \t|\n", time.Since(started).Seconds())
	w.Flush()
	fmt.Fprintf(os.Stderr, "\n%s\n", table.String())
	if err := os.WriteFile(filepath.Join(outDir(), "figures.md"), []byte(table.String()), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: keep the figures:", err)
	}
}

// outDir is e2e/out, kept after the run: logs, screenshots, figures.
func outDir() string {
	dir := filepath.Join(repoDir(), "e2e", "out")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		panic(err)
	}
	return dir
}

// repoDir is the root of the repository: go test runs in the package's directory.
var repoDir = sync.OnceValue(func() string {
	dir, err := filepath.Abs("..")
	if err != nil {
		panic(err)
	}
	return dir
})

// eventually waits until ok returns nil; after limit the test fails with ok's last error.
func eventually(t *testing.T, limit time.Duration, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(100 * time.Millisecond) // between two looks at the condition
	}
}
