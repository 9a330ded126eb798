package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// moment is what had been used by then: CPU time in seconds by user, bytes of WAL.
type moment struct {
	at                           time.Time
	program, store, machine, wal float64
	metrics                      map[string]float64
}

func (b *bench) now(ctx context.Context, p *program) (m moment, err error) {
	if m.metrics, err = p.metrics(); err != nil {
		return m, err
	}
	if m.wal, err = b.db.wal(ctx); err != nil {
		return m, err
	}
	m.at, m.machine, m.store = time.Now(), machineCPU(), seconds(b.redis, false)
	for _, pid := range p.pids {
		m.program += seconds(pid, false)
	}
	for _, pid := range b.db.processes() {
		m.store += seconds(pid, pid == b.db.postmaster) // it counts the ended ones
	}
	return m, nil
}

// steadyWAL is what a visit writes to the WAL at most, in bytes, when the table
// is in its steady state. The rows take about 220, an image of a page 2,700: at
// most one visit of 15 writes one.
const steadyWAL = 400

// warmUp loads a program for a second. A large table is loaded until visits meet
// few pages that they are the first to change since the last checkpoint: these
// are written to the WAL as a whole, and must be read in where the buffers do
// not hold them.
func (b *bench) warmUp(ctx context.Context, p *program, c cell) error {
	for began := time.Now(); time.Since(began) < 5*time.Minute; {
		before, err := b.db.wal(ctx)
		if err != nil {
			return err
		}
		answer, _, err := b.wrk(ctx, p, c, 1)
		if err != nil {
			return err
		}
		after, err := b.db.wal(ctx)
		if err != nil {
			return err
		}
		if c.Database != "many" || after-before < steadyWAL*float64(answer.Requests) {
			return nil
		}
	}
	return fmt.Errorf("after 5 minutes a visit still writes more than %d bytes of WAL", steadyWAL)
}

// load warms a program up, then measures it.
func (b *bench) load(ctx context.Context, p *program, c cell) (sample, error) {
	if err := b.warmUp(ctx, p, c); err != nil {
		return sample{}, fmt.Errorf("warm up: %w", err)
	}
	before, err := b.now(ctx, p)
	if err != nil {
		return sample{}, err
	}
	answer, load, err := b.wrk(ctx, p, c, b.seconds)
	if err != nil {
		return sample{}, err
	}
	after, err := b.now(ctx, p)
	if err != nil {
		return sample{}, err
	}
	if answer.Broken > 0 {
		return sample{}, fmt.Errorf("%d connections broke or timed out", answer.Broken)
	}
	visits := float64(answer.Requests - answer.Refused)
	if visits == 0 {
		return sample{Refused: answer.Refused}, nil
	}
	ours := after.program - before.program + after.store - before.store + (load.ProcessState.UserTime() + load.ProcessState.SystemTime()).Seconds()
	s := sample{
		Rate:       visits / (answer.Microseconds / 1e6),
		Refused:    answer.Refused,
		ProgramCPU: 1e6 * (after.program - before.program) / visits,
		StoreCPU:   1e6 * (after.store - before.store) / visits,
		OthersCPU:  max(0, after.machine-before.machine-ours) / (after.at.Sub(before.at).Seconds() * float64(runtime.NumCPU())),
		P50:        answer.P50 / 1e3,
		P99:        answer.P99 / 1e3,
		WAL:        (after.wal - before.wal) / visits,
	}
	rise := func(name string) float64 { return after.metrics[name] - before.metrics[name] }
	if batches := rise(`footfall_batches_total{result="committed"}`); batches > 0 {
		s.BatchSize = rise(`footfall_visits_total{result="counted"}`) / batches
	}
	s.ResidentPeak, err = field(fmt.Sprintf("/proc/%d/status", p.pids[0]), "VmHWM:")
	s.ResidentPeak /= 1024 // kB to MiB
	return s, err
}

// answer is what visitors.lua prints.
type answer struct {
	Requests, Refused, Broken int
	Microseconds, P50, P99    float64
}

func (b *bench) wrk(ctx context.Context, p *program, c cell, seconds int) (answer, *exec.Cmd, error) {
	b.seed++
	cmd := command(ctx, "sh", "-c", `ulimit -n $(ulimit -Hn) && exec wrk "$@"`, "wrk", "-t2", "-c", strconv.Itoa(c.Connections), "-d", strconv.Itoa(seconds)+"s",
		"--timeout=10s", "-s", filepath.Join("bench", "visitors.lua"), "http://"+p.addr)
	cmd.Env = append(os.Environ(), fmt.Sprintf("VISITORS=%d", c.Visitors),
		fmt.Sprintf("SEED=%d", 2*b.seed)) // one for each of wrk's threads
	out, err := output(cmd)
	if err != nil {
		return answer{}, nil, err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var a answer
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &a); err != nil {
		return answer{}, nil, fmt.Errorf("wrk printed %q: %w", out, err)
	}
	return a, cmd, nil
}

// metrics reads the program's /metrics: value by name with labels.
func (p *program) metrics() (map[string]float64, error) {
	r, err := http.Get("http://" + p.addr + "/metrics")
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	values := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			values[name] = v
		}
	}
	return values, err
}

// latency is how long answers take when requests arrive at a constant rate,
// however slow the answers are. Milliseconds.
type latency struct{ Rate, P50, P99, Longest float64 }

const latencySeconds = 8

func (b *bench) latency(ctx context.Context, c cell, rate float64) (latency, error) {
	p, err := b.start(ctx, c)
	if err != nil {
		return latency{}, err
	}
	defer p.stop() // an error here does not change the figures
	random := rand.New(rand.NewPCG(uint64(b.seed), 1))
	var targets strings.Builder
	for range 20_000 { // then from the beginning
		n := random.IntN(c.Visitors)
		fmt.Fprintf(&targets, "GET http://%s/\nX-Forwarded-For: 10.%d.%d.%d\n\n", p.addr, n>>16, n>>8&255, n&255)
	}
	file, answers := filepath.Join(b.dir, "targets"), filepath.Join(b.dir, "answers")
	if err := os.WriteFile(file, []byte(targets.String()), 0o644); err != nil {
		return latency{}, err
	}
	// A request that finds all 256 connections busy waits, and its wait counts.
	for _, seconds := range []int{2, latencySeconds} { // the first opens the connections
		if _, err := output(command(ctx, filepath.Join(b.dir, "vegeta"), "attack", "-targets", file, "-output", answers, "-rate", fmt.Sprintf("%.0f/1s", rate),
			"-duration", fmt.Sprintf("%ds", seconds), "-connections=256", "-max-connections=256", "-workers=256", "-max-body=0")); err != nil {
			return latency{}, err
		}
	}
	text, err := output(command(ctx, filepath.Join(b.dir, "vegeta"), "report", "-type=json", answers))
	if err != nil {
		return latency{}, err
	}
	var report struct {
		Rate, Success float64
		Latencies     struct {
			P50 float64 `json:"50th"`
			P99 float64 `json:"99th"`
			Max float64
		}
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		return latency{}, fmt.Errorf("read vegeta's report: %w", err)
	}
	if report.Success < 1 {
		return latency{}, fmt.Errorf("only %.4f of the answers were 200", report.Success)
	}
	l := report.Latencies
	return latency{report.Rate, l.P50 / 1e6, l.P99 / 1e6, l.Max / 1e6}, nil
}
