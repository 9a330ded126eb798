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
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// cell is one thing that is measured in each round.
type cell struct {
	Program     string // see programs
	Database    string
	Visitors    int // that the visits are drawn from
	Connections int
}

func (c cell) String() string { return fmt.Sprintf("%s %d %d", c.Database, c.Visitors, c.Connections) }

const (
	many   = 10_000_000
	before = "439401b" // the commit that earlier is built from
)

// cells are in the order of a round. footfall comes first: the page of others is
// renewed as often as it commits a batch.
func cells() []cell {
	all := []cell{{"footfall", "footfall", 1000, 64}}
	for _, program := range []string{"nethttp", "earlier", "redis", "naive", "single", "sqlite", "docker"} {
		all = append(all, cell{program, program, 1000, 64})
	}
	return append(all,
		cell{"footfall", "footfall", 1000, 1024}, cell{"nethttp", "nethttp", 1000, 1024}, cell{"earlier", "earlier", 1000, 1024}, cell{"redis", "redis", 1000, 1024},
		cell{"footfall", "footfall", 1000, 8192},
		cell{"footfall", "million", 1_000_000, 64}, cell{"naive", "million_naive", 1_000_000, 64},
		cell{"footfall", "none", many, 64}, cell{"footfall", "many", many, 64})
}

// sample is what one run of a cell gave. CPU is in µs per visit.
type sample struct {
	Rate                 float64 // answers with status 200, per second
	Refused              int     // other answers
	ProgramCPU, StoreCPU float64 // with a daemon of Docker in the program's
	OthersCPU            float64 // share of the machine that everything else took
	ResidentPeak         float64 // MiB
	BatchSize, P50, P99  float64 // visits; ms
	WAL                  float64 // bytes per visit
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
	AnswerBytes                   map[string]int // headers and page, by program
}

type options struct {
	rounds, seconds int
	only            *regexp.Regexp
}

func main() {
	log.SetFlags(log.Ltime)
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "how often each cell is measured")
	flag.IntVar(&o.seconds, "seconds", 4, "length of one measurement")
	only := flag.String("only", "", "measure the `cells` that match this regular expression, and write no results")
	flag.Parse()
	o.only = regexp.MustCompile(*only)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := measure(ctx, o)
	if err == nil {
		err = r.write(*only == "" && o.rounds >= 5)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// bench is what all measurements share.
type bench struct {
	options
	dir       string // temporary
	programs  map[string]string
	db        *database
	redis     int             // its process
	key       string          // VISITOR_KEY
	seed      int             // of the last draw of visitors; each draw has another
	batchSize map[int]float64 // of footfall in this round, by connections
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
	b := &bench{options: o, dir: dir, key: strings.Repeat("bench", 8), batchSize: map[int]float64{}}
	log.Print("building")
	if err := b.build(ctx); err != nil {
		return nil, err
	}
	if b.db, err = startDatabase(ctx, b.programs["footfall"], dir); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.db.stop()) }()
	stopRedis, err := b.startRedis(ctx)
	if err != nil {
		return nil, err
	}
	defer stopRedis()
	defer exec.Command("docker", "image", "rm", "-f", "footfall-bench").Run() // in vain without the cell docker
	r = &results{Rounds: o.rounds, Seconds: o.seconds, Began: time.Now().UTC(), Samples: map[string][]sample{}, AnswerBytes: map[string]int{}}
	if err := r.describe(ctx, b); err != nil {
		return nil, err
	}
	base := cells()[0]
	chosen := []cell{base}
	for _, c := range cells()[1:] {
		if o.only.MatchString(c.String()) && (c.Program != "docker" || b.hasDocker(ctx)) {
			chosen = append(chosen, c)
		}
	}
	for _, c := range chosen {
		if err := b.fill(ctx, c); err != nil {
			return nil, fmt.Errorf("fill %s: %w", c, err)
		}
	}
	if err := b.reference(ctx, base, r); err != nil {
		return nil, err
	}
	for round := range o.rounds {
		for _, c := range chosen {
			s, err := b.run(ctx, c, r)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c, err)
			}
			log.Printf("round %d  %-24s %8.0f/s  CPU µs: %5.0f program, %5.0f store; p99 %.1f ms; %.1f MiB; batches of %.1f; %.0f bytes of WAL; others %.0f %%; refused %d",
				round+1, c, s.Rate, s.ProgramCPU, s.StoreCPU, s.P99, s.ResidentPeak, s.BatchSize, s.WAL, 100*s.OthersCPU, s.Refused)
			r.Samples[c.String()] = append(r.Samples[c.String()], s)
			if c == base {
				l, err := b.latency(ctx, c, s.Rate/2)
				if err != nil {
					return nil, fmt.Errorf("latency: %w", err)
				}
				r.Latency = append(r.Latency, l)
			}
		}
	}
	return r, b.afterwards(ctx, r, chosen)
}

// reference keeps footfall's answer for nethttp, and how long it takes to be ready.
func (b *bench) reference(ctx context.Context, base cell, r *results) error {
	for range 10 {
		p, err := b.start(ctx, base)
		if err != nil {
			return err
		}
		r.ReadyMS = append(r.ReadyMS, float64(p.ready.Microseconds())/1000)
		header, body, err := p.page()
		if err == nil {
			header.Del("Date")
			var text []byte
			text, err = json.Marshal(map[string]any{"Header": header, "Body": body})
			err = cmp.Or(err, os.WriteFile(filepath.Join(b.dir, "answer"), text, 0o644))
		}
		if err := errors.Join(err, p.stop()); err != nil {
			return err
		}
	}
	return nil
}

// build makes the program as a release has it, its variants (the same sources
// with another recorder.go), bare net/http and the program of an earlier commit.
func (b *bench) build(ctx context.Context) error {
	b.programs = map[string]string{}
	goBuild := func(name, dir string, args ...string) error {
		b.programs[name] = filepath.Join(b.dir, name+".bin")
		cmd := command(ctx, "go", append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", b.programs[name]}, args...)...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
		_, err := output(cmd)
		return err
	}
	earlier := filepath.Join(b.dir, before)
	archive := command(ctx, "sh", "-c", fmt.Sprintf("mkdir %[1]s && git archive %[2]s | tar -x -C %[1]s", earlier, before))
	if _, err := output(archive); err != nil {
		return fmt.Errorf("%s, for which the whole history is needed: %w", before, err)
	}
	if err := errors.Join(goBuild("footfall", ""), goBuild("nethttp", "", "./bench/nethttp"), goBuild("earlier", earlier)); err != nil {
		return err
	}
	// SQLite's driver is in a copy of go.mod, not in the program's.
	mod := filepath.Join(b.dir, "go.mod")
	if _, err := output(command(ctx, "sh", "-c", fmt.Sprintf("cp go.mod go.sum %s && go get -modfile=%s modernc.org/sqlite@v1.62.0", b.dir, mod))); err != nil {
		return err
	}
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	for _, name := range []string{"naive", "single", "redis", "sqlite"} {
		replace := map[string]string{}
		for file, variant := range map[string]string{"recorder.go": name, "variant.go": "variant"} {
			source, err := os.ReadFile(filepath.Join("bench", "variants", variant+".go"))
			if err != nil {
				return err
			}
			replace[filepath.Join(root, file)] = filepath.Join(b.dir, name+file)
			if err := os.WriteFile(filepath.Join(b.dir, name+file), source[len("//go:build ignore\n"):], 0o644); err != nil {
				return err
			}
		}
		list, err := json.Marshal(map[string]any{"Replace": replace})
		if err != nil {
			return err
		}
		overlay := filepath.Join(b.dir, name+".json")
		if err := errors.Join(os.WriteFile(overlay, list, 0o644), goBuild(name, "", "-mod=mod", "-modfile="+mod, "-overlay="+overlay, ".")); err != nil {
			return fmt.Errorf("build %s: %w", name, err)
		}
	}
	install := command(ctx, "go", "install", "github.com/tsenart/vegeta/v12@v12.13.0")
	install.Env = append(os.Environ(), "GOBIN="+b.dir)
	_, err = output(install)
	return err
}

// run measures a cell once.
func (b *bench) run(ctx context.Context, c cell, r *results) (sample, error) {
	if c.Database == "none" {
		if err := b.db.clear(ctx, c.Database); err != nil {
			return sample{}, err
		}
	}
	p, err := b.start(ctx, c)
	if err != nil {
		return sample{}, err
	}
	header, body, err := p.page()
	if err != nil {
		return sample{}, errors.Join(err, p.stop())
	}
	r.AnswerBytes[c.Program] = len(body) + headerBytes(header)
	s, err := b.load(ctx, p, c)
	if c.Program == "footfall" && c.Visitors == 1000 {
		b.batchSize[c.Connections] = s.BatchSize
	}
	return s, cmp.Or(err, p.stop())
}

// headerBytes is what a response's head takes, its first line included.
func headerBytes(h http.Header) int {
	var text strings.Builder
	h.Write(&text)
	return len("HTTP/1.1 200 OK\r\n") + text.Len() + len("\r\n")
}

var usesPostgres = []string{"footfall", "earlier", "naive", "single", "docker"}

func (c cell) postgres() bool { return slices.Contains(usesPostgres, c.Program) }
