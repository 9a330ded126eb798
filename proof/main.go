// proof checks from outside that footfall counts exactly: see docs/proof.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Exit status.
const (
	passed = iota
	violated
	notRun // a wrong argument, or nothing to check
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal then kills at once
	status, err := run(ctx, os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "proof:", err)
	}
	os.Exit(status)
}

// settings is what the flags say.
type settings struct {
	urls  []string
	load  load
	alone bool
	bench bool
	keep  bool
	only  []string
	lasts time.Duration
	seed  uint64
	out   string

	source string
	edits  []edit
}

func run(ctx context.Context, args []string, out io.Writer) (status int, err error) {
	var s settings
	flags := flag.NewFlagSet("proof", flag.ContinueOnError)
	flags.Func("url", "an `instance`: http://127.0.0.1:8080 or unix:/path; repeat it for each", func(v string) error {
		s.urls = append(s.urls, v)
		return nil
	})
	flags.BoolVar(&s.alone, "alone", false, "nobody else visits meanwhile: check the totals from above too")
	flags.BoolVar(&s.bench, "bench", false, "start PostgreSQL and footfall from this repository, and break them")
	flags.Func("fault", "with -bench: only faults of this `name`; repeat it for each", func(v string) error {
		s.only = append(s.only, v)
		return nil
	})
	flags.BoolVar(&s.keep, "keep", false, "with -bench: leave the logs")
	flags.DurationVar(&s.lasts, "for", 30*time.Second, "how long")
	flags.IntVar(&s.load.rate, "rate", 5, "requests per second")
	flags.IntVar(&s.load.clients, "clients", 4, "requests at the same time, at most")
	flags.IntVar(&s.load.visitors, "visitors", 10, "visitors who come in turn, before others take their place")
	flags.IntVar(&s.load.each, "visits", 80, "visits of each of them, about")
	flags.IntVar(&s.load.leaving, "leaving", 0, "of a thousand visits, how many are left before their answer")
	flags.Uint64Var(&s.seed, "seed", rand.Uint64(), "of everything that is left to chance")
	flags.StringVar(&s.out, "out", ".", "`directory` for history.html and faults.md")
	flags.StringVar(&s.source, "source", "..", "with -bench: the `directory` of the program's source")
	if err := flags.Parse(args); err != nil {
		return notRun, nil // flag has said why
	}
	if flags.NArg() > 0 || s.bench == (len(s.urls) > 0) || s.load.rate < 1 || s.load.clients < 1 || s.load.visitors < 1 || s.load.each < 1 {
		return notRun, errors.New("give -url for each instance, or -bench; see -help")
	}
	if s.out, err = filepath.Abs(s.out); err != nil {
		return notRun, err
	}
	if err := os.MkdirAll(s.out, 0o755); err != nil {
		return notRun, err
	}
	var h *history
	if s.bench {
		s.load.crowd = newCrowd()
		h, err = s.runBench(ctx, out)
	} else {
		h, err = s.runOutside(ctx, out)
	}
	if err != nil {
		return notRun, err
	}
	return s.judge(h, out)
}

// runOutside visits an installation that is there.
func (s *settings) runOutside(ctx context.Context, out io.Writer) (*history, error) {
	l := &s.load
	l.crowd = newCrowd()
	for i, url := range s.urls {
		l.targets = append(l.targets, newTarget(i, url))
	}
	l.prepare()
	h := newHistory(len(l.targets))
	h.alone = s.alone
	// The days of two instances may differ for a moment at midnight.
	midnight := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, 1)
	h.skewed = []interval{{int64(midnight.Add(-10 * time.Second).Sub(h.began)), int64(midnight.Add(10 * time.Second).Sub(h.began))}}
	if err := h.before(ctx, l.targets[0]); err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "%d visits by %d visitors so far. For %s this adds about %d visits, by visitors of %s/48. They stay counted.\n",
		h.visits0, h.visitors0, s.lasts, int(s.lasts.Seconds())*l.rate*7/8, strings.TrimSuffix(l.crowd.address(0), "0::1")+":")
	// Two strangers, who must not be taken for one.
	for _, visitor := range []int{others - 1, others - 2} {
		limit, cancel := context.WithTimeout(ctx, patience)
		v, err := l.targets[0].visit(limit, l.crowd, visitor, h)
		cancel()
		if err != nil {
			return nil, err
		}
		if v.outcome != confirmed {
			return nil, fmt.Errorf("%s does not count a visit", l.targets[0].base)
		}
		if v.number != 1 {
			return nil, fmt.Errorf("%s does not believe X-Forwarded-For from here: run this on a host in TRUSTED_PROXIES, and past any proxy that sets the header", l.targets[0].base)
		}
		h.visits = append(h.visits, v)
	}
	limit, cancel := context.WithTimeout(ctx, s.lasts)
	defer cancel()
	if err := l.run(limit, h, s.seed); err != nil {
		return nil, err
	}
	wait(ctx, 3*time.Second) // what may still be counted is counted, or never
	return h, l.finish(ctx, h)
}

// runBench visits instances of its own while faults strike.
func (s *settings) runBench(ctx context.Context, out io.Writer) (h *history, err error) {
	log := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	log("seed %d", s.seed)
	dir, err := os.MkdirTemp("", "footfall-proof")
	if err != nil {
		return nil, err
	}
	if s.keep {
		log("logs in %s", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	binary, err := build(s.source, dir, s.edits...)
	if err != nil {
		return nil, err
	}
	const instances = 3
	b, err := newBench(ctx, dir, binary, instances)
	if err != nil {
		return nil, err
	}
	defer b.stop()
	defer func() {
		for i, in := range b.instances {
			if err != nil || h != nil && h.crashed != "" {
				log("instance %d, the end of its log:\n%s", i, lines(in.log, 10))
			}
		}
	}()
	if err := b.awaitReady(ctx); err != nil {
		return nil, err
	}
	h = newHistory(instances)
	h.alone = true
	l := &s.load
	l.targets = b.targets()
	l.prepare()
	if err := h.before(ctx, l.targets[0]); err != nil {
		return nil, err
	}
	striking, cancel := context.WithCancel(ctx)
	defer cancel()
	loaded := make(chan error, 1)
	go func() {
		err := l.run(striking, h, s.seed)
		cancel()
		loaded <- err
	}()
	st := &struck{bench: b, h: h, l: l, random: rand.New(rand.NewPCG(s.seed, 1))}
	table, err := st.strikes(striking, s.only, time.Now().Add(s.lasts), log)
	cancel()
	if err = errors.Join(err, <-loaded); errors.Is(err, errCrashed) {
		h.crashed = err.Error()
		return h, nil
	}
	if err != nil {
		return nil, err
	}
	if err := b.awaitQuiet(ctx); err != nil {
		return nil, err
	}
	if err := l.finish(ctx, h); err != nil {
		return nil, err
	}
	text := tabulate(table)
	log("\n%s", text)
	n := 0
	for _, f := range table {
		n += f.times
	}
	log("%d faults of %d kinds, %d failovers, %d instances", n, len(table), b.promoted, instances)
	if err := os.WriteFile(filepath.Join(s.out, "faults.md"), []byte(text), 0o644); err != nil {
		return nil, err
	}
	if err := b.verify(); err != nil {
		h.recount = err.Error()
	}
	return h, nil
}

// judge checks the history and says what it is.
func (s *settings) judge(h *history, out io.Writer) (int, error) {
	began := time.Now()
	bad := h.check()
	path := filepath.Join(s.out, "history.html")
	if err := h.draw(path, bad); err != nil {
		return notRun, err
	}
	counts := map[outcome]int{}
	visitors := map[int]bool{}
	for _, v := range h.visits {
		counts[v.outcome]++
		visitors[v.visitor] = true
	}
	fmt.Fprintf(out, "%d visits by %d visitors: %d confirmed, %d may have been counted, %d certainly not; %d reads; checked in %.1f s\n",
		len(h.visits), len(visitors), counts[confirmed], counts[unknown], counts[refused], len(h.reads), time.Since(began).Seconds())
	if counts[confirmed] == 0 {
		return notRun, errors.New("no visit was confirmed: there is nothing to check")
	}
	if len(bad) == 0 {
		fmt.Fprintf(out, "PASS: every number and every total is possible (%s shows one visitor's history)\n", path)
		return passed, nil
	}
	for _, b := range bad {
		fmt.Fprintf(out, "FAIL, %s: %s\n", b.invariant, b.what)
		slices.SortFunc(b.visits, func(a, b visit) int { return int(a.call - b.call) })
		for i, v := range b.visits {
			if v.call == 0 && v.ret == 0 {
				continue
			}
			if i == 12 {
				fmt.Fprintf(out, "  … and %d more\n", len(b.visits)-i)
				break
			}
			fmt.Fprintln(out, "  ", v)
		}
		for _, r := range b.reads {
			fmt.Fprintln(out, "  ", r)
		}
	}
	fmt.Fprintf(out, "%s shows the first\n", path)
	return violated, nil
}
