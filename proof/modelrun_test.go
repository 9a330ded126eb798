//go:build model

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The search finds no state that breaks a promise, and one for each guard that
// is taken away.
func TestModel(t *testing.T) {
	t.Run("all guards", func(t *testing.T) {
		t.Parallel()
		report := search(t)
		assert.Contains(t, report, "errors: 0")
		assert.NotContains(t, report, "Search not completed")
		assert.NotContains(t, report, "depth too small")
		t.Log(report)
	})
	for name, what := range guards {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			report := search(t, "-D"+name)
			assert.Contains(t, report, "assertion violated", what)
			t.Log(report)
		})
	}
}

// search returns the report of spin's verifier.
func search(t *testing.T, flags ...string) string {
	model, err := filepath.Abs(modelPath)
	require.NoError(t, err)
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s: %s", name, out)
		return string(out)
	}
	run("spin", append(flags, "-a", model)...)
	// A counterexample is found sooner than a compiler optimizes.
	optimize := "-O2"
	if len(flags) > 0 {
		optimize = "-O0"
	}
	run("gcc", optimize, "-w", "-DSAFETY", "-DNOFAIR", "-DXUSAFE", "-DVECTORSZ=512", "-DMEMLIM=8000", "-o", "pan", "pan.c")
	began := time.Now()
	// -E: a process that waits for what never comes is no error.
	report := run(filepath.Join(dir, "pan"), "-E", "-n", "-m10000", "-w24")
	t.Logf("%.1f s", time.Since(began).Seconds())
	if _, err := os.Stat(filepath.Join(dir, "footfall.pml.trail")); err == nil && len(flags) == 0 {
		report += run("spin", "-t", "-p", "-g", model)
	}
	return report
}
