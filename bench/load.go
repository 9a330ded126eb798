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

// usage is CPU time in seconds, by user.
type usage struct{ program, database, machine, waitedProgram, waitedDatabase float64 }

func (b *bench) usage(p *program) usage {
	pids := b.db.processes()
	u := usage{seconds(p.Process.Pid, false), 0, machineCPU(), waited(p.Process.Pid), waited(pids...)}
	for _, pid := range pids {
		u.database += seconds(pid, pid == b.db.postmaster) // it counts the ended ones
	}
	return u
}

// others is the share of the machine's CPU time that other programs took.
func others(before, after usage, load *exec.Cmd, wall float64) float64 {
	ours := after.program - before.program + after.database - before.database +
		(load.ProcessState.UserTime() + load.ProcessState.SystemTime()).Seconds()
	return max(0, after.machine-before.machine-ours) / (wall * float64(runtime.NumCPU()))
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
		before, _, err := b.db.traffic(ctx)
		if err != nil {
			return err
		}
		answer, _, err := b.wrk(ctx, p, c, 1)
		if err != nil {
			return err
		}
		after, _, err := b.db.traffic(ctx)
		if err != nil {
			return err
		}
		if c.Visitors != many || c.State == empty || after-before < steadyWAL*float64(answer.Requests) {
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
	if c.State == checkpoint {
		if _, err := b.db.conn.Exec(ctx, "CHECKPOINT"); err != nil {
			return sample{}, err
		}
	}
	counted, err := p.metrics()
	if err != nil {
		return sample{}, err
	}
	wal, reads, err := b.db.traffic(ctx)
	if err != nil {
		return sample{}, err
	}
	before, began := b.usage(p), time.Now()
	answer, load, err := b.wrk(ctx, p, c, b.seconds)
	if err != nil {
		return sample{}, err
	}
	after, wall := b.usage(p), time.Since(began).Seconds()
	walThen, readsThen, err := b.db.traffic(ctx)
	if err != nil {
		return sample{}, err
	}
	countedThen, err := p.metrics()
	if err != nil {
		return sample{}, err
	}
	if answer.Broken > 0 {
		return sample{}, fmt.Errorf("%d connections broke or timed out", answer.Broken)
	}
	requests := float64(answer.Requests - answer.Refused)
	if requests == 0 {
		return sample{Refused: answer.Refused}, nil
	}
	s := sample{
		Rate:        requests / (answer.Microseconds / 1e6),
		Refused:     answer.Refused,
		ProgramCPU:  1e6 * (after.program - before.program) / requests,
		DatabaseCPU: 1e6 * (after.database - before.database) / requests,
		LoadCPU:     1e6 * (load.ProcessState.UserTime() + load.ProcessState.SystemTime()).Seconds() / requests,
		OthersCPU:   others(before, after, load, wall),
		WAL:         (walThen - wal) / requests,
		Reads:       (readsThen - reads) / requests,
	}
	const committed, visits = `footfall_batches_total{result="committed"}`, `footfall_visits_total{result="counted"}`
	if batches := countedThen[committed] - counted[committed]; batches > 0 {
		s.Batches = batches / (answer.Microseconds / 1e6)
		s.BatchSize = (countedThen[visits] - counted[visits]) / batches
	}
	status := fmt.Sprintf("/proc/%d/status", p.Process.Pid)
	if s.Resident, err = field(status, "VmRSS:"); err != nil {
		return sample{}, err
	}
	if s.ResidentPeak, err = field(status, "VmHWM:"); err != nil {
		return sample{}, err
	}
	s.Resident, s.ResidentPeak = s.Resident/1024, s.ResidentPeak/1024 // kB to MiB
	return s, nil
}

// answer is what visitors.lua prints.
type answer struct {
	Requests, Refused, Broken int
	Microseconds              float64
}

func (b *bench) wrk(ctx context.Context, p *program, c cell, seconds int) (answer, *exec.Cmd, error) {
	b.seed++
	cmd := command(ctx, "wrk", "-t2", "-c", strconv.Itoa(c.Connections), "-d", strconv.Itoa(seconds)+"s",
		"--timeout=10s", "-s", filepath.Join("bench", "visitors.lua"), "http://"+p.addr)
	cmd.Env = append(os.Environ(), fmt.Sprintf("VISITORS=%d", c.Visitors), "DISTRIBUTION="+c.Distribution,
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
type latency struct {
	Rate, P50, P99, Longest float64
	// Where the time goes: the share that takes longer than 10 ms, as seen by
	// the client, as the program sees it from a request's arrival to its
	// answer, and of the batches from sending to confirmation.
	SlowClient, SlowProgram, SlowBatches float64
	LoadCPU                              float64 // of vegeta, µs a request
	OthersCPU                            float64
	// How long program and PostgreSQL could run and got no core, µs a request.
	ProgramWaited, DatabaseWaited float64
}

const latencySeconds = 8

func (b *bench) latency(ctx context.Context, c cell, rate float64) (latency, error) {
	random := rand.New(rand.NewPCG(uint64(b.seed), 1))
	var targets strings.Builder
	for range 20_000 { // then from the beginning
		n := random.IntN(c.Visitors)
		fmt.Fprintf(&targets, "GET http://ADDR/\nX-Forwarded-For: 10.%d.%d.%d\n\n", n>>16, n>>8&255, n&255)
	}
	p, err := b.start(ctx, c.Program, c.Database)
	if err != nil {
		return latency{}, err
	}
	defer p.stop() // an error here does not change the figures
	file, results := filepath.Join(b.dir, "targets"), filepath.Join(b.dir, "answers")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(targets.String(), "ADDR", p.addr)), 0o644); err != nil {
		return latency{}, err
	}
	// A request that finds all 256 connections busy waits, and its wait counts.
	attack := func(seconds int) (*exec.Cmd, error) {
		cmd := command(ctx, b.vegeta, "attack", "-targets", file, "-output", results, "-rate", fmt.Sprintf("%.0f/1s", rate),
			"-duration", fmt.Sprintf("%ds", seconds), "-connections=256", "-max-connections=256", "-workers=256", "-max-body=0")
		_, err := output(cmd)
		return cmd, err
	}
	if _, err := attack(2); err != nil { // opens the connections
		return latency{}, err
	}
	counted, err := p.metrics()
	if err != nil {
		return latency{}, err
	}
	before, began := b.usage(p), time.Now()
	load, err := attack(latencySeconds)
	if err != nil {
		return latency{}, err
	}
	after, wall := b.usage(p), time.Since(began).Seconds()
	countedThen, err := p.metrics()
	if err != nil {
		return latency{}, err
	}
	slow := func(histogram, label string) float64 {
		n := func(name string) float64 { return countedThen[histogram+name] - counted[histogram+name] }
		all := n("_bucket{" + label + `le="+Inf"}`)
		return (all - n("_bucket{"+label+`le="0.01"}`)) / all
	}
	l := latency{
		SlowProgram: slow("footfall_http_request_duration_seconds", `route="/",`),
		SlowBatches: slow("footfall_batch_duration_seconds", ""),
		OthersCPU:   others(before, after, load, wall),
	}
	text, err := output(command(ctx, b.vegeta, "report", "-type=json", "-buckets=[0,10ms]", results))
	if err != nil {
		return latency{}, err
	}
	var report struct {
		Rate, Success float64
		Requests      float64
		Latencies     struct {
			P50 float64 `json:"50th"`
			P99 float64 `json:"99th"`
			Max float64
		}
		Buckets map[string]float64
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		return latency{}, fmt.Errorf("read vegeta's report: %w", err)
	}
	if report.Success < 1 {
		return latency{}, fmt.Errorf("only %.4f of the answers were 200", report.Success)
	}
	l.Rate, l.P50, l.P99, l.Longest = report.Rate, report.Latencies.P50/1e6, report.Latencies.P99/1e6, report.Latencies.Max/1e6
	l.SlowClient = report.Buckets["10000000"] / report.Requests
	l.ProgramWaited = 1e6 * (after.waitedProgram - before.waitedProgram) / report.Requests
	l.DatabaseWaited = 1e6 * (after.waitedDatabase - before.waitedDatabase) / report.Requests
	l.LoadCPU = 1e6 * (load.ProcessState.UserTime() + load.ProcessState.SystemTime()).Seconds() / report.Requests
	return l, nil
}
