package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/jackc/pgx/v5"
)

// fault is one kind of what breaks.
type fault struct {
	name   string
	weight int  // how often it strikes, compared with the others
	pairs  bool // it may strike together with another one
	strike func(context.Context) error

	times  int
	lasted []time.Duration
	took   []time.Duration // from its end until every instance counts again
}

// struck is a bench under load that faults strike.
type struck struct {
	*bench
	h      *history
	l      *load
	random *rand.Rand
	mu     sync.Mutex // of random
	toxics atomic.Int64
}

func (s *struck) between(least, most time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return least + time.Duration(s.random.Int64N(int64(most-least)))
}

func (s *struck) intN(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.random.IntN(n)
}

func (s *struck) instance() *instance { return s.instances[s.intN(len(s.instances))] }

func (s *struck) node() *node { return s.nodes[s.primary.Load()] }

// wait lets a fault last.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// poison spoils a way by a toxic of Toxiproxy, and returns how to heal it.
// https://github.com/Shopify/toxiproxy#toxics lists them.
func (s *struck) poison(p *toxiproxy.Proxy, kind, stream, attributes string) (heal func() error, err error) {
	name := "t" + strconv.FormatInt(s.toxics.Add(1), 10)
	_, err = p.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(`{"name": %q, "type": %q, "stream": %q, "attributes": %s}`, name, kind, stream, attributes)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return func() error { return p.Toxics.RemoveToxic(context.Background(), name) }, nil
}

// spoiled does what a fault does while ways are spoiled.
func (s *struck) spoiled(ways []*toxiproxy.Proxy, kind string, streams []string, attributes string, do func() error) (err error) {
	var heals []func() error
	for _, way := range ways {
		for _, stream := range streams {
			heal, poisonErr := s.poison(way, kind, stream, attributes)
			if poisonErr != nil {
				err = errors.Join(err, poisonErr)
				continue
			}
			heals = append(heals, heal)
		}
	}
	if err == nil {
		err = do()
	}
	for _, heal := range heals {
		err = errors.Join(err, heal())
	}
	return err
}

var (
	there = []string{"upstream"}
	back  = []string{"downstream"}
	both  = []string{"upstream", "downstream"}
)

// network is a fault of one instance's way to the database.
func (s *struck) network(kind string, streams []string, attributes string, least, most time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		in := s.instance()
		return s.spoiled(in.ways[:], kind, streams, attributes, func() error {
			wait(ctx, s.between(least, most))
			return nil
		})
	}
}

// sessions does something to the sessions of the program: all, or those that
// wait for the standby.
func (s *struck) sessions(ctx context.Context, function, which string) error {
	return s.exec(ctx, s.node(), `SELECT `+function+`(pid) FROM pg_stat_activity WHERE datname = 'footfall' AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND `+which)
}

// alone has a fault strike while no other has the database servers.
func (s *struck) alone(strike func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		s.database.Lock()
		defer s.database.Unlock()
		return strike(ctx)
	}
}

// failover ends the primary by end, and the standby takes its place.
func (s *struck) failover(ctx context.Context, end func(*node)) error {
	old := int(s.primary.Load())
	end(s.nodes[old])
	if err := s.promote(ctx); err != nil {
		return err
	}
	return s.rebuild(ctx, old)
}

func killed(n *node) { n.kill() }

// waiting returns when a commit waits for the standby.
func (s *struck) waiting(ctx context.Context) error {
	return s.awaitQuery(ctx, s.node(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')`)
}

func (s *struck) setClock(in *instance, day int) error {
	content := []byte(strconv.Itoa(day * 24 * 60 * 60))
	if err := os.WriteFile(in.clock+".new", content, 0o644); err != nil {
		return err
	}
	return os.Rename(in.clock+".new", in.clock)
}

// skewedClocks does what a fault does while the instances are on two days.
func (s *struck) skewedClocks(do func() error) error {
	begin := s.h.now()
	err := do()
	time.Sleep(50 * time.Millisecond) // until all have read their clocks' errors
	s.h.skewed = append(s.h.skewed, interval{begin, s.h.now() + int64(2*time.Second)})
	return err
}

// faults is the table. What several faults at the right time do together is a
// row of its own, as chance hardly ever finds it.
func (s *struck) faults() []*fault {
	const ms = time.Millisecond
	return []*fault{
		{name: "connection cut before its request", weight: 16, pairs: true, strike: s.network("limit_data", there, `{"bytes": 0}`, 5*ms, 100*ms)},
		{name: "connection cut within its request", weight: 16, pairs: true, strike: s.network("limit_data", there, `{"bytes": 300}`, 5*ms, 100*ms)},
		{name: "connection cut after the commit, its answer lost", weight: 20, pairs: true, strike: s.network("limit_data", back, `{"bytes": 0}`, 5*ms, 100*ms)},
		{name: "connection cut within its answer", weight: 16, pairs: true, strike: s.network("limit_data", back, `{"bytes": 40}`, 5*ms, 100*ms)},
		{name: "connections reset", weight: 14, pairs: true, strike: s.network("reset_peer", both, `{"timeout": 0}`, 5*ms, 200*ms)},
		{name: "requests swallowed", weight: 3, pairs: true, strike: s.network("timeout", there, `{"timeout": 0}`, 200*ms, 2500*ms)},
		{name: "answers swallowed, commits go through", weight: 5, pairs: true, strike: s.network("timeout", back, `{"timeout": 0}`, 200*ms, 2500*ms)},
		{name: "instance and database cut off from each other", weight: 3, pairs: true, strike: s.network("timeout", both, `{"timeout": 0}`, 200*ms, 2500*ms)},
		{name: "slow network", weight: 3, pairs: true, strike: s.network("latency", both, `{"latency": 100, "jitter": 90}`, 300*ms, 1200*ms)},
		{name: "network that tears requests and answers apart", weight: 3, pairs: true, strike: s.network("slicer", both, `{"average_size": 60, "size_variation": 40, "delay": 100}`, 300*ms, 1000*ms)},
		{name: "every session terminated", weight: 8, pairs: true, strike: s.alone(func(ctx context.Context) error { return s.sessions(ctx, "pg_terminate_backend", "true") })},
		{name: "every statement canceled", weight: 8, pairs: true, strike: s.alone(func(ctx context.Context) error { return s.sessions(ctx, "pg_cancel_backend", "state = 'active'") })},
		{name: "totals locked by another program", weight: 4, pairs: true, strike: s.alone(func(ctx context.Context) error {
			return s.locked(ctx, func() error { wait(ctx, s.between(50*ms, 2500*ms)); return nil })
		})},
		{name: "totals locked, the connections of waiting batches reset", weight: 6, strike: s.alone(func(ctx context.Context) error {
			return s.locked(ctx, func() error {
				wait(ctx, 250*ms)
				for _, in := range s.instances {
					if err := s.spoiled(in.ways[:], "reset_peer", both, `{"timeout": 0}`, func() error { wait(ctx, 30*ms); return nil }); err != nil {
						return err
					}
					for _, way := range in.ways { // those that wait send nothing, so nothing resets them
						way.Stop()
						if err := way.Start(); err != nil {
							return err
						}
					}
				}
				wait(ctx, s.between(100*ms, 400*ms))
				return nil
			})
		})},
		{name: "answers swallowed, then the rows of the writers removed", weight: 4, strike: s.alone(func(ctx context.Context) error {
			in := s.instance()
			return s.spoiled(in.ways[:], "timeout", back, `{"timeout": 0}`, func() error {
				wait(ctx, 200*ms)
				return s.exec(ctx, s.node(), `DELETE FROM writers`)
			})
		})},
		{name: "footfall killed with -9, started again", weight: 10, pairs: true, strike: s.again(func(in *instance) { in.kill() })},
		{name: "footfall stopped, started again", weight: 6, pairs: true, strike: s.again(func(in *instance) { in.end(syscall.SIGTERM) })},
		{name: "footfall stands still", weight: 3, pairs: true, strike: func(ctx context.Context) error {
			in := s.instance()
			in.mu.Lock()
			defer in.mu.Unlock()
			in.cmd.Process.Signal(syscall.SIGSTOP)
			wait(ctx, s.between(100*ms, 2500*ms))
			return in.cmd.Process.Signal(syscall.SIGCONT)
		}},
		{name: "pooler killed with -9, started again", weight: 6, pairs: true, strike: s.alone(func(context.Context) error {
			p := s.poolers[s.primary.Load()]
			p.kill()
			return p.start()
		})},
		{name: "PostgreSQL killed with -9, started again", weight: 4, pairs: true, strike: s.alone(func(ctx context.Context) error {
			s.node().kill()
			if err := s.node().start(); err != nil {
				return err
			}
			return s.awaitStandby(ctx)
		})},
		{name: "a process of PostgreSQL killed with -9", weight: 6, pairs: true, strike: s.alone(func(ctx context.Context) error {
			pids := childrenOf(s.node().cmd.Process.Pid)
			if len(pids) == 0 {
				return nil
			}
			syscall.Kill(pids[s.intN(len(pids))], syscall.SIGKILL)
			wait(ctx, 100*ms)
			return s.awaitStandby(ctx)
		})},
		{name: "PostgreSQL restarted in good order", weight: 3, pairs: true, strike: s.alone(func(ctx context.Context) error {
			s.node().end(syscall.SIGINT)
			if err := s.node().start(); err != nil {
				return err
			}
			return s.awaitStandby(ctx)
		})},
		{name: "PostgreSQL stands still", weight: 3, pairs: true, strike: s.alone(func(ctx context.Context) error {
			pids := append(childrenOf(s.node().cmd.Process.Pid), s.node().cmd.Process.Pid)
			for _, pid := range pids {
				syscall.Kill(pid, syscall.SIGSTOP)
			}
			wait(ctx, s.between(100*ms, 2500*ms))
			for _, pid := range pids {
				syscall.Kill(pid, syscall.SIGCONT)
			}
			return s.awaitStandby(ctx)
		})},
		{name: "primary and standby cut off from each other", weight: 4, pairs: true, strike: s.alone(func(ctx context.Context) error {
			err := s.spoiled([]*toxiproxy.Proxy{s.node().repl}, "timeout", both, `{"timeout": 0}`, func() error {
				wait(ctx, s.between(200*ms, 2500*ms))
				return nil
			})
			return errors.Join(err, s.awaitStandby(ctx))
		})},
		{name: "standby killed with -9, started again", weight: 4, pairs: true, strike: s.alone(func(ctx context.Context) error {
			standby := s.nodes[1-s.primary.Load()]
			standby.kill()
			wait(ctx, s.between(50*ms, 1000*ms))
			if err := standby.start(); err != nil {
				return err
			}
			return s.awaitStandby(ctx)
		})},
		{name: "failover, the primary killed with -9", weight: 6, pairs: true, strike: s.alone(func(ctx context.Context) error { return s.failover(ctx, killed) })},
		{name: "switch-over in good order", weight: 2, strike: s.alone(func(ctx context.Context) error {
			return s.failover(ctx, func(n *node) { n.end(syscall.SIGINT) })
		})},
		{name: "failover, the old primary alive with one instance on its side", weight: 3, strike: s.alone(s.split)},
		{name: "waits for the standby terminated, then failover", weight: 2, strike: s.alone(func(ctx context.Context) error { return s.unseen(ctx, "pg_terminate_backend") })},
		{name: "waits for the standby canceled, then failover", weight: 2, strike: s.alone(func(ctx context.Context) error { return s.unseen(ctx, "pg_cancel_backend") })},
		{name: "clocks step over midnight, one after the other", weight: 3, pairs: true, strike: s.alone(func(ctx context.Context) error {
			return s.skewedClocks(func() error {
				s.day++
				for _, i := range s.random.Perm(len(s.instances)) {
					if err := s.setClock(s.instances[i], s.day); err != nil {
						return err
					}
					wait(ctx, s.between(10*ms, 300*ms))
				}
				return nil
			})
		})},
		{name: "a clock is set back over midnight, and forth again", weight: 3, pairs: true, strike: s.alone(func(ctx context.Context) error {
			if s.day == 0 {
				return nil
			}
			in := s.instance()
			return s.skewedClocks(func() error {
				err := s.setClock(in, s.day-1)
				wait(ctx, s.between(50*ms, 500*ms))
				return errors.Join(err, s.setClock(in, s.day))
			})
		})},
	}
}

// locked does something while another program holds the row of totals.
func (s *struck) locked(ctx context.Context, do func() error) error {
	return s.query(ctx, s.node(), "footfall", func(ctx context.Context, conn *pgx.Conn) error {
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		defer tx.Rollback(context.WithoutCancel(ctx))
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '5s'`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT FROM totals FOR UPDATE`); err != nil {
			return err
		}
		return do()
	})
}

// again ends an instance and starts it.
func (s *struck) again(end func(*instance)) func(context.Context) error {
	return func(context.Context) error {
		in := s.instance()
		in.mu.Lock()
		defer in.mu.Unlock()
		end(in)
		return in.start()
	}
}

// unseen ends the waits for a standby that is cut off, so that commits stand on
// the primary that the standby has not seen. Then the primary is lost.
func (s *struck) unseen(ctx context.Context, function string) error {
	old := s.node()
	err := s.spoiled([]*toxiproxy.Proxy{old.repl}, "timeout", both, `{"timeout": 0}`, func() error {
		if err := s.waiting(ctx); err != nil {
			return err
		}
		for range 3 {
			if err := s.sessions(ctx, function, "wait_event = 'SyncRep'"); err != nil {
				return err
			}
			wait(ctx, s.between(50*time.Millisecond, 250*time.Millisecond))
		}
		old.kill()
		return nil
	})
	if err != nil {
		return err
	}
	return s.failover(ctx, func(*node) {})
}

// split cuts the primary off from the standby and from all instances but one,
// and promotes the standby. Nothing that the old primary still does may be
// confirmed. What it still shows is old, so that instance is not asked for
// totals meanwhile.
func (s *struck) split(ctx context.Context) error {
	old := int(s.primary.Load())
	on := s.instance()
	s.l.deposed[on.index].Store(true)
	defer s.l.deposed[on.index].Store(false)
	var ways []*toxiproxy.Proxy
	for _, in := range s.instances {
		if in == on {
			ways = append(ways, in.ways[1-old])
		} else {
			ways = append(ways, in.ways[old])
		}
	}
	err := s.spoiled(append(ways, s.nodes[old].repl), "timeout", both, `{"timeout": 0}`, func() error {
		wait(ctx, 100*time.Millisecond)
		if err := s.promote(ctx); err != nil {
			return err
		}
		wait(ctx, s.between(200*time.Millisecond, 2500*time.Millisecond))
		s.nodes[old].kill()
		return nil
	})
	if err != nil {
		return err
	}
	return s.rebuild(ctx, old)
}

// errCrashed: a process ended that nothing had ended.
var errCrashed = errors.New("ended by itself")

// counting returns when every instance has confirmed a visit that was sent
// after now.
func (s *struck) counting(ctx context.Context) error {
	from := s.h.now()
	for deadline := time.Now().Add(patienceOfBench); ; {
		waiting := false
		for i := range s.h.lastOf {
			waiting = waiting || s.h.lastOf[i].Load() <= from
		}
		if !waiting || ctx.Err() != nil {
			return nil
		}
		for i, in := range s.instances {
			if !in.running() {
				return fmt.Errorf("%w: instance %d", errCrashed, i)
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not every instance counts again within %s", patienceOfBench)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// strikes has faults strike until ctx is done and each has struck at least
// once; only lists the names of those that may, or nothing for all.
func (s *struck) strikes(ctx context.Context, only []string, until time.Time, log func(string, ...any)) (table []*fault, err error) {
	var can []*fault
	var partners []*fault
	all := 0
	for _, f := range s.faults() {
		if len(only) == 0 || slices.Contains(only, f.name) {
			can = append(can, f)
			all += f.weight
			if f.pairs {
				partners = append(partners, f)
			}
		}
	}
	if len(can) < max(1, len(only)) {
		return nil, fmt.Errorf("not every fault of %q exists", only)
	}
	if len(partners) > 1 {
		pair := &fault{name: "two of these at once", weight: all / 4}
		pair.strike = func(ctx context.Context) error {
			a := s.intN(len(partners))
			b := (a + 1 + s.intN(len(partners)-1)) % len(partners)
			errs := make(chan error, 2)
			for _, f := range []*fault{partners[a], partners[b]} {
				go func() {
					wait(ctx, s.between(0, 200*time.Millisecond))
					errs <- f.strike(ctx)
				}()
			}
			return errors.Join(<-errs, <-errs)
		}
		can = append(can, pair)
		all += pair.weight
	}
	if err := s.counting(ctx); err != nil {
		return can, err
	}
	for round := 0; ctx.Err() == nil; round++ {
		f := can[round%len(can)]
		if round >= len(can) {
			if time.Now().After(until) {
				break
			}
			n := s.intN(all)
			for _, f = range can {
				if n -= f.weight; n < 0 {
					break
				}
			}
		}
		began := time.Now()
		if err := f.strike(ctx); err != nil {
			return can, fmt.Errorf("%s: %w", f.name, err)
		}
		ended := time.Now()
		if err := s.counting(ctx); err != nil {
			return can, fmt.Errorf("after %s: %w", f.name, err)
		}
		f.times++
		f.lasted = append(f.lasted, ended.Sub(began))
		f.took = append(f.took, time.Since(ended))
		if round%50 == 49 {
			log("%d faults, %d visits confirmed, %d open", round+1, s.h.confirmedAll.Load(), s.h.unknownAll.Load())
		}
	}
	return can, nil
}

// tabulate writes what has struck as a table for docs/figures.md.
func tabulate(table []*fault) string {
	var out strings.Builder
	fmt.Fprintln(&out, "| fault | times | seconds that it lasts, median | until every instance counts again: median | longest |")
	fmt.Fprintln(&out, "| --- | ---: | ---: | ---: | ---: |")
	for _, f := range table {
		if f.times == 0 {
			continue
		}
		slices.Sort(f.lasted)
		slices.Sort(f.took)
		fmt.Fprintf(&out, "| %s | %d | %.3f | %.3f | %.3f |\n", f.name, f.times, f.lasted[len(f.lasted)/2].Seconds(), f.took[len(f.took)/2].Seconds(), f.took[len(f.took)-1].Seconds())
	}
	return out.String()
}
