package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// clockVariable names the file with the error of an instance's clock.
const clockVariable = "PROOF_CLOCK"

// build compiles the program in source with a clock that can be wrong, and
// nothing else changed but what edits says. A program in Go asks the kernel for
// the time and not the C library, so faketime(1) has no hold on it; instead the
// standard library is compiled with another time.Now. The program's own source
// has no hook for it.
func build(source, dir string, edits ...edit) (binary string, err error) {
	if source, err = filepath.Abs(source); err != nil {
		return "", err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w", err)
	}
	now := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	changed := edit{
		old: "\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {",
		new: "\tsec, nsec, mono := runtimeNow()\n\tsec += ClockError\n\tif mono == 0 {",
	}
	content, err := os.ReadFile(now)
	if err != nil {
		return "", err
	}
	if content, err = changed.apply(content); err != nil {
		return "", fmt.Errorf("%s: %w", now, err)
	}
	content = append(content, "\n// ClockError is how many seconds the clock is fast.\nvar ClockError int64\n"...)
	replace := map[string]string{}
	put := func(of, name string, content []byte) error {
		replace[of] = filepath.Join(dir, name)
		return os.WriteFile(replace[of], content, 0o644)
	}
	if err := put(now, "time.go", content); err != nil {
		return "", err
	}
	if err := put(filepath.Join(source, "zz_clock.go"), "clock.go", []byte(clockReader)); err != nil {
		return "", err
	}
	for i, e := range edits {
		path, content, err := e.find(source, replace)
		if err != nil {
			return "", err
		}
		if err := put(path, fmt.Sprintf("edit-%d.go", i), content); err != nil {
			return "", err
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, overlay, 0o644); err != nil {
		return "", err
	}
	binary = filepath.Join(dir, "footfall")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-overlay", path, "-o", binary, ".")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return binary, output(cmd)
}

const clockReader = `package main

import (
	"os"
	"strconv"
	"strings"
	"time"
)

func init() {
	path := os.Getenv("` + clockVariable + `")
	if path == "" {
		return
	}
	read := func() {
		content, _ := os.ReadFile(path)
		seconds, _ := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64)
		time.ClockError = seconds
	}
	read()
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			read()
		}
	}()
}
`

// edit is a change of the program's source: text that occurs once, and what is
// put in its place.
type edit struct{ old, new string }

func (e edit) apply(content []byte) ([]byte, error) {
	if n := strings.Count(string(content), e.old); n != 1 {
		return nil, fmt.Errorf("occurs %d times, not once: %q", n, e.old)
	}
	return []byte(strings.Replace(string(content), e.old, e.new, 1)), nil
}

// find applies the edit to the one file in source that has its text, in the
// state that the edits before have left it in.
func (e edit) find(source string, replaced map[string]string) (path string, content []byte, err error) {
	paths, err := filepath.Glob(filepath.Join(source, "*.go"))
	if err != nil {
		return "", nil, err
	}
	inside, err := filepath.Glob(filepath.Join(source, "internal/*/*.go"))
	if err != nil {
		return "", nil, err
	}
	for _, p := range append(paths, inside...) {
		if strings.HasSuffix(p, "_test.go") {
			continue
		}
		from := p
		if r := replaced[p]; r != "" {
			from = r
		}
		found, err := os.ReadFile(from)
		if err != nil {
			return "", nil, err
		}
		if strings.Contains(string(found), e.old) {
			if path != "" {
				return "", nil, fmt.Errorf("is in %s and in %s: %q", path, p, e.old)
			}
			path = p
			if content, err = e.apply(found); err != nil {
				return "", nil, fmt.Errorf("%s: %w", p, err)
			}
		}
	}
	if path == "" {
		return "", nil, fmt.Errorf("is nowhere in %s: %q", source, e.old)
	}
	return path, content, nil
}
