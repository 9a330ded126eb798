package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// load is many visitors at once.
type load struct {
	targets  []*target
	crowd    crowd
	clients  int
	rate     int // requests per second
	visitors int // who visit in turn, before others take their place
	each     int // visits of each of them, about
	leaving  int // of a thousand visits, how many are left before their answer
	deposed  []atomic.Bool
}

// others is how many visitors there are at most.
const others = 1 << 16

// prepare must be called once the targets are there.
func (l *load) prepare() { l.deposed = make([]atomic.Bool, len(l.targets)) }

// run visits and reads until ctx is done, and then awaits every answer. The
// error is an answer that cannot be read.
func (l *load) run(ctx context.Context, h *history, seed uint64) error {
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		failed error
		slots  atomic.Int64
		count  atomic.Int64
	)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	step := int64(time.Second) / int64(l.rate)
	for c := range l.clients {
		random := rand.New(rand.NewPCG(seed, uint64(c)))
		wg.Go(func() {
			var visits []visit
			var reads []read
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				h.visits = append(h.visits, visits...)
				h.reads = append(h.reads, reads...)
			}()
			for ctx.Err() == nil {
				// One request per step, with no rush after a standstill.
				slot := slots.Add(step)
				if late := h.now() - int64(time.Second); slot < late {
					slots.CompareAndSwap(slot, late)
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Duration(slot - h.now())):
				}
				t := l.targets[random.IntN(len(l.targets))]
				if random.IntN(8) == 0 && !l.deposed[t.index].Load() {
					limit, cancelRead := context.WithTimeout(context.WithoutCancel(ctx), patience)
					r, ok, err := t.read(limit, random.IntN(len(readings)), h)
					cancelRead()
					if err != nil {
						mu.Lock()
						failed = errors.Join(failed, err)
						mu.Unlock()
						cancel()
					} else if ok {
						reads = append(reads, r)
					}
					continue
				}
				wait := patience
				if random.IntN(1000) < l.leaving {
					wait = time.Duration(random.IntN(20)) * time.Millisecond
				}
				limit, cancelVisit := context.WithTimeout(context.WithoutCancel(ctx), wait)
				v, err := t.visit(limit, l.crowd, l.pick(count.Add(1), random), h)
				cancelVisit()
				if err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
					cancel()
					continue
				}
				v.client = c
				h.noted(v)
				visits = append(visits, v)
				if v.outcome == refused {
					select { // leaves the processor to what is starting
					case <-ctx.Done():
					case <-time.After(10 * time.Millisecond):
					}
				}
			}
		})
	}
	wg.Wait()
	return failed
}

// pick returns who makes the nth visit: mostly one of those whose turn it is,
// and one of them far more often than the rest; now and then one of before.
func (l *load) pick(n int64, random *rand.Rand) int {
	turn := int(n) / (l.visitors * l.each)
	switch random.IntN(20) {
	case 0:
		return random.IntN(min((turn+1)*l.visitors, others))
	case 1, 2:
		return (turn * l.visitors) % others
	}
	return (turn*l.visitors + random.IntN(l.visitors)) % others
}

// before reads the totals that the run begins with.
func (h *history) before(ctx context.Context, t *target) error {
	r, err := t.surely(ctx, 0, h)
	if err != nil {
		return err
	}
	days, err := t.surely(ctx, len(readings)-1, h)
	if err != nil {
		return err
	}
	h.visits0, h.visitors0, h.days0 = r.visits, r.visitors, days.visits
	return nil
}

// finish lets each visitor come once more, which shows the visitor's row, and
// then reads the totals.
func (l *load) finish(ctx context.Context, h *history) error {
	seen := map[int]bool{}
	for _, v := range h.visits {
		seen[v.visitor] = true
	}
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		failed error
	)
	todo := make(chan int)
	for c := range l.clients {
		wg.Go(func() {
			for visitor := range todo {
				for try := 0; ; try++ {
					limit, cancel := context.WithTimeout(ctx, patience)
					v, err := l.targets[visitor%len(l.targets)].visit(limit, l.crowd, visitor, h)
					cancel()
					v.client = c
					mu.Lock()
					if err == nil {
						h.visits = append(h.visits, v)
					}
					if err == nil && v.outcome != confirmed && try == 20 {
						err = fmt.Errorf("visitor %d cannot be counted at the end of the run", visitor)
					}
					failed = errors.Join(failed, err)
					mu.Unlock()
					if err != nil || v.outcome == confirmed {
						break
					}
					time.Sleep(200 * time.Millisecond)
				}
			}
		})
	}
	pace := time.NewTicker(time.Second / time.Duration(l.rate))
	defer pace.Stop()
	for visitor := range seen {
		<-pace.C
		todo <- visitor
	}
	close(todo)
	wg.Wait()
	if failed != nil {
		return failed
	}
	var err error
	if h.end, err = l.targets[0].surely(ctx, 0, h); err != nil {
		return err
	}
	days, err := l.targets[0].surely(ctx, len(readings)-1, h)
	h.endDays = days.visits
	return err
}

// surely reads totals, again and again on a busy machine.
func (t *target) surely(ctx context.Context, which int, h *history) (r read, err error) {
	for range 20 {
		limit, cancel := context.WithTimeout(ctx, patience)
		r, ok, err := t.read(limit, which, h)
		cancel()
		if err != nil || ok {
			return r, err
		}
		wait(ctx, 200*time.Millisecond)
	}
	return r, fmt.Errorf("%s does not answer %s", t.base, readings[which].path)
}
