//go:build mutants

package main

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMutantsSQL puts each error into the program's SQL and runs the tests that must
// notice it.
func TestMutantsSQL(t *testing.T) {
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			path, content, err := m.edit.find(programDir, nil)
			require.NoError(t, err)
			list := overlay(t, path, string(content))
			output, err := inProgram("test", "-overlay", list, "-count=1", "-failfast", "-timeout=5m", "-v", "-run", "^("+m.tests+")$", ".").CombinedOutput()
			// A mutant that does not compile proves nothing.
			if err == nil || bytes.Contains(output, []byte("[build failed]")) {
				t.Errorf("survived %s: %.4000s", m.tests, output)
			}
		})
	}
}

const programDir = ".."

func inProgram(args ...string) *exec.Cmd {
	cmd := exec.Command("go", args...)
	cmd.Dir = programDir
	return cmd
}

// overlay has the program compiled with other content in one of its files.
func overlay(t *testing.T, path, content string) (list string) {
	dir := t.TempDir()
	path, err := filepath.Abs(path)
	require.NoError(t, err)
	changed := filepath.Join(dir, "changed.go")
	require.NoError(t, os.WriteFile(changed, []byte(content), 0o644))
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{path: changed}})
	require.NoError(t, err)
	list = filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(list, replace, 0o644))
	return list
}

// TestMutantsGo has gremlins mutate each file.
func TestMutantsGo(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(programDir, "*.go"))
	require.NoError(t, err)
	rooms, err := filepath.Glob(filepath.Join(programDir, "internal/*/*.go"))
	require.NoError(t, err)
	for name, g := range gremlins {
		t.Run(name, func(t *testing.T) {
			result := filepath.Join(t.TempDir(), "gremlins.json")
			args := []string{"run", tool, "unleash", "--workers", "2", "--timeout-coefficient", "2", "--invert-logical", "--output", result, "--exclude-files", "^(bench|delivery|e2e|proof)/"}
			for _, f := range slices.Concat(files, rooms) {
				if path, _ := filepath.Rel(programDir, f); path != name {
					args = append(args, "--exclude-files", "^"+regexp.QuoteMeta(path)+"$")
				}
			}
			if strings.Contains(name, "/") { // its tests are in the root as well
				args = append(args, "--integration", "--coverpkg", "./...")
			}
			cmd := inProgram(args...)
			cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false -count=1 -vet=off -run=^Test("+g.tests+")")
			cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
			require.NoError(t, cmd.Run())
			content, err := os.ReadFile(result)
			require.NoError(t, err)
			var report struct {
				Files []struct {
					Name      string `json:"file_name"`
					Mutations []struct {
						Type, Status string
						Line, Column int
					}
				}
			}
			require.NoError(t, json.Unmarshal(content, &report))
			source, err := os.ReadFile(filepath.Join(programDir, name))
			require.NoError(t, err)
			lines := strings.Split(string(source), "\n")
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, name, source, 0)
			require.NoError(t, err)
			inFunction := func(line int) bool { // gremlins knows no coverage of other declarations
				return slices.ContainsFunc(file.Decls, func(d ast.Decl) bool {
					_, ok := d.(*ast.FuncDecl)
					return ok && set.Position(d.Pos()).Line <= line && line <= set.Position(d.End()).Line
				})
			}
			counts := map[string]int{}
			require.Len(t, report.Files, 1)
			for _, m := range report.Files[0].Mutations {
				line := lines[m.Line-1]
				if !inFunction(m.Line) {
					continue
				}
				if m.Type == "ARITHMETIC_BASE" && line[m.Column-1] == '+' { // of strings, it does not compile
					lines[m.Line-1] = line[:m.Column-1] + "-" + line[m.Column:]
					list := overlay(t, filepath.Join(programDir, name), strings.Join(lines, "\n"))
					lines[m.Line-1] = line
					if inProgram("build", "-buildvcs=false", "-overlay", list, "-o", os.DevNull, ".").Run() != nil {
						counts["does not compile"]++
						continue
					}
				}
				counts[m.Status]++
				if m.Status == "KILLED" || m.Status == "TIMED OUT" {
					continue
				}
				if !slices.ContainsFunc(g.survives, func(s survivor) bool { return s.mutation == m.Type && s.line == strings.TrimSpace(line) }) {
					t.Errorf("%s:%d:%d %s %s: %s", name, m.Line, m.Column, m.Type, m.Status, strings.TrimSpace(line))
				}
			}
			t.Log(counts)
		})
	}
}

const tool = "github.com/go-gremlins/gremlins/cmd/gremlins@v0.6.0"
