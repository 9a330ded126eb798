// Bench measures footfall beside what it could be compared with, and writes
// results.md and results.svg. See README.md.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cell is one thing that is measured in each round.
type cell struct {
	Program      string // footfall, or one of variants/
	Database     string
	Visitors     int // that the visits are drawn from
	Connections  int
	Distribution string // of the visits over the visitors: uniform, zipf
	State        state  // of the table when a run begins
}

type state string

const (
	asLeft     state = ""           // by the run before
	empty      state = "empty"      // no visitors
	checkpoint state = "checkpoint" // after a checkpoint: the first change of a page writes all of it to the WAL
)

func (c cell) String() string {
	name := fmt.Sprintf("%s %s %d", c.Database, c.Distribution, c.Connections)
	return strings.TrimSpace(name + " " + string(c.State))
}

// counterpart is the cell of footfall that c is compared with.
func (c cell) counterpart() cell {
	c.Database = "footfall_" + strconv.Itoa(c.Visitors)
	c.Program, c.State = "footfall", asLeft
	return c
}

const many = 10_000_000

// cells are in the order of a round: those that are compared follow each other.
// footfall comes before limit, which renews its page as often as footfall did.
func cells() []cell {
	var all []cell
	for _, visitors := range []int{1, 1000, 1_000_000} {
		for _, program := range []string{"footfall", "limit", "single", "naive"} {
			all = append(all, cell{program, fmt.Sprintf("%s_%d", program, visitors), visitors, 64, "uniform", asLeft})
		}
	}
	for _, program := range []string{"footfall", "limit"} {
		all = append(all, cell{program, program + "_1000", 1000, 1024, "uniform", asLeft})
	}
	for _, distribution := range []string{"zipf", "uniform"} {
		all = append(all,
			cell{"footfall", "footfall_empty", many, 64, distribution, empty},
			cell{"footfall", fmt.Sprintf("footfall_%d", many), many, 64, distribution, asLeft})
	}
	return append(all, cell{"footfall", fmt.Sprintf("footfall_%d", many), many, 64, "uniform", checkpoint})
}

// sample is what one run of a cell gave. CPU is in µs a request.
type sample struct {
	Rate                    float64 // answers with status 200, per second
	Refused                 int     // other answers
	ProgramCPU, DatabaseCPU float64
	LoadCPU                 float64 // of the load generator
	OthersCPU               float64 // share of the machine that everything else took
	Resident, ResidentPeak  float64 // MiB
	Batches, BatchSize      float64 // per second; visits
	WAL, Reads              float64 // a request: bytes; pages that PostgreSQL's buffers did not hold
}

// results is everything that was measured; report.go writes it.
type results struct {
	Machine, Postgres, Go, Commit string
	Began                         time.Time
	Rounds, Seconds               int
	Samples                       map[string][]sample // by cell
	Latency                       []latency
	ReadyMS                       []float64
	BinaryMB                      float64
	BytesPerVisitor               float64
	HOT                           map[string]float64 // share of the updates of visitors, by database
}

func main() {
	log.SetFlags(log.Ltime)
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "how often each cell is measured")
	flag.IntVar(&o.seconds, "seconds", 4, "length of one measurement")
	only := flag.String("only", "", "measure the `cells` that match this regular expression, and write no results")
	flag.Func("set", "give PostgreSQL the setting `name=value`, and write no results; may be repeated", func(s string) error {
		o.settings = append(o.settings, s)
		return nil
	})
	flag.Parse()
	o.only = regexp.MustCompile(*only)
	short := *only != "" || o.rounds < 5 || len(o.settings) > 0
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := measure(ctx, o)
	if err == nil {
		err = r.write(!short)
	}
	if err != nil {
		log.Fatal(err)
	}
}

type options struct {
	rounds, seconds int
	only            *regexp.Regexp
	settings        []string // of PostgreSQL, in addition to the fixed ones
}

// bench is what all measurements share.
type bench struct {
	options
	dir      string // temporary
	programs map[string]string
	vegeta   string
	db       *database
	key      string           // VISITOR_KEY
	seed     int              // of the last draw of visitors; each draw has another
	batches  map[cell]float64 // visits a batch in this round, by footfall's cell
}

func measure(ctx context.Context, o options) (r *results, err error) {
	// Not in /tmp, which may be memory: there a commit would cost nothing.
	dir, err := os.MkdirTemp("/var/tmp", "footfall-bench")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// The account postgres must enter it.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	b := &bench{options: o, dir: dir, key: strings.Repeat("bench", 8), batches: map[cell]float64{}}
	log.Print("building")
	if err := b.build(ctx); err != nil {
		return nil, err
	}
	if b.db, err = startDatabase(ctx, b.programs["footfall"], dir, o.settings); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.db.stop()) }()
	r = &results{Rounds: o.rounds, Seconds: o.seconds, Began: time.Now().UTC(), Samples: map[string][]sample{}, HOT: map[string]float64{}}
	if err := r.describe(ctx, b); err != nil {
		return nil, err
	}
	var chosen []cell
	for _, c := range cells() {
		if o.only.MatchString(c.String()) {
			chosen = append(chosen, c)
		}
	}
	base := cell{"footfall", "footfall_1000", 1000, 64, "uniform", asLeft}
	for _, c := range append(chosen, base) {
		if err := b.fill(ctx, c); err != nil {
			return nil, err
		}
	}
	for range 10 {
		p, err := b.start(ctx, base.Program, base.Database)
		if err != nil {
			return nil, err
		}
		r.ReadyMS = append(r.ReadyMS, float64(p.ready.Microseconds())/1000)
		if err := p.stop(); err != nil {
			return nil, err
		}
	}
	for round := range o.rounds {
		for _, c := range chosen {
			s, err := b.run(ctx, c)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c, err)
			}
			log.Printf("round %d  %-36s %8.0f/s  CPU µs: %4.0f program, %4.0f PostgreSQL, %3.0f load; %.1f MiB; %.0f batches/s of %.1f; %.0f bytes of WAL, %.2f page reads a visit; others %.0f %%; refused %d",
				round+1, c, s.Rate, s.ProgramCPU, s.DatabaseCPU, s.LoadCPU, s.ResidentPeak, s.Batches, s.BatchSize, s.WAL, s.Reads, 100*s.OthersCPU, s.Refused)
			r.Samples[c.String()] = append(r.Samples[c.String()], s)
			if c == base {
				l, err := b.latency(ctx, c, s.Rate/2)
				if err != nil {
					return nil, fmt.Errorf("latency: %w", err)
				}
				log.Printf("round %d  latency at %.0f/s: p50 %.1f, p99 %.1f, longest %.0f ms; over 10 ms: %.2f %% at the client, %.2f %% in the program, %.2f %% of the batches; waited for a core, µs a request: %.0f program, %.0f PostgreSQL; others %.0f %%",
					round+1, l.Rate, l.P50, l.P99, l.Longest, 100*l.SlowClient, 100*l.SlowProgram, 100*l.SlowBatches, l.ProgramWaited, l.DatabaseWaited, 100*l.OthersCPU)
				r.Latency = append(r.Latency, l)
			}
		}
	}
	return r, b.afterwards(ctx, r, chosen)
}

// build makes the program as a release has it, and its variants: the same
// sources with another recorder.go.
func (b *bench) build(ctx context.Context) error {
	b.programs = map[string]string{}
	recorder, err := filepath.Abs("recorder.go")
	if err != nil {
		return err
	}
	for _, name := range []string{"footfall", "limit", "single", "naive"} {
		overlay := map[string]map[string]string{"Replace": {}}
		if name != "footfall" {
			source, err := os.ReadFile(filepath.Join("bench", "variants", name+".go"))
			if err != nil {
				return err
			}
			replacement := filepath.Join(b.dir, name+".go")
			source = []byte(strings.TrimPrefix(string(source), "//go:build ignore\n"))
			if err := os.WriteFile(replacement, source, 0o644); err != nil {
				return err
			}
			overlay["Replace"][recorder] = replacement
		}
		file := filepath.Join(b.dir, name+".json")
		list, err := json.Marshal(overlay)
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, list, 0o644); err != nil {
			return err
		}
		b.programs[name] = filepath.Join(b.dir, name)
		build := command(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-overlay", file, "-o", b.programs[name], ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if _, err := output(build); err != nil {
			return fmt.Errorf("build %s: %w", name, err)
		}
	}
	install := command(ctx, "go", "install", "github.com/tsenart/vegeta/v12@v12.13.0")
	install.Env = append(os.Environ(), "GOBIN="+b.dir)
	b.vegeta = filepath.Join(b.dir, "vegeta")
	_, err = output(install)
	return err
}

// run measures a cell once.
func (b *bench) run(ctx context.Context, c cell) (sample, error) {
	if c.State == empty {
		if err := b.db.clear(ctx, c.Database); err != nil {
			return sample{}, err
		}
	}
	var env []string
	if c.Program == "limit" {
		size, measured := b.batches[c.counterpart()]
		if !measured {
			return sample{}, errors.New("limit renews its page as often as footfall did: let -only match that cell of footfall as well")
		}
		env = []string{fmt.Sprintf("VISITS_A_BATCH=%.0f", size)}
	}
	p, err := b.start(ctx, c.Program, c.Database, env...)
	if err != nil {
		return sample{}, err
	}
	s, err := b.load(ctx, p, c)
	if c.Program == "footfall" {
		b.batches[c] = s.BatchSize
	}
	return s, cmp.Or(err, p.stop())
}
