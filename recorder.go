package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"footfall/internal/postgres"
	"footfall/internal/visitor"
)

const (
	// visitTimeout is how long a visit may wait for its commit. The page is to
	// answer within 2 s even when the database does not.
	visitTimeout = 1800 * time.Millisecond

	maxBatch   = 1024 // visits in one batch
	maxWaiting = 8192 // visits that wait for a commit; the next is turned away
)

var (
	errNotCounted = errors.New("visit not counted")
	errBusy       = fmt.Errorf("%w: too many are waiting for the database", errNotCounted)
	errStopping   = fmt.Errorf("%w: the service is stopping", errNotCounted)
)

// recorder commits visits that arrive together in one transaction (group
// commit): while one batch is on its way to the database the next one gathers.
// There is no timer: a lone visit is a batch of one and waits for nothing.
type recorder struct {
	store   *store
	log     *slog.Logger
	metrics *metrics
	now     func() time.Time

	mu      sync.Mutex
	queue   []*batch      // batches not yet sent, in order of arrival; visits join the last
	waiting int           // visits in queue and in the batch on its way
	closed  bool          // no more visits
	failing bool          // the last batch was not committed, or there was none yet
	wake    chan struct{} // buffered(1): tells run that queue or closed changed
	stopped chan struct{} // closed when run has returned

	// Used by run only. Together they identify a batch, so that it is applied once.
	writer int64 // our row in writers; 0: none yet
	number int64 // of the last batch that we know to be committed
}

// batch is the visits that are committed together. All are of one day.
type batch struct {
	date     time.Time
	deadline time.Time            // of its first visit; none waits longer
	visits   map[visitor.ID]int64 // how many of each visitor
	size     int                  // their sum

	done    chan struct{} // closed when the rest is there
	err     error
	receipt *receipt
	results map[visitor.ID]standing // of each visitor after the batch, from the receipt

	once   sync.Once // of share
	shared any
}

// share returns what make returned to the first visit of the batch that asked:
// work that is the same for all of them is done once.
func (b *batch) share(make func() any) any {
	b.once.Do(func() { b.shared = make() })
	return b.shared
}

// visit is one place in a batch.
type visit struct {
	*batch
	id  visitor.ID
	nth int64 // of this visitor's visits in the batch, from 1
}

// standing is what the page says of its visitor.
type standing struct {
	visits int64 // so far; 0: none was counted
	place  int64 // the visitor's place among all visitors, on the first visit; else 0
}

// standing returns how often the visitor has been counted, this visit included,
// and at the first one the visitor's place among all visitors.
func (v visit) standing() standing {
	s := v.results[v.id]
	s.visits += v.nth - v.visits[v.id]
	if s.visits > 1 {
		s.place = 0
	}
	return s
}

func newRecorder(s *store, log *slog.Logger, m *metrics) *recorder {
	r := &recorder{
		store: s, log: log, metrics: m, now: time.Now,
		wake:    make(chan struct{}, 1),
		stopped: make(chan struct{}),
		failing: true,
	}
	go r.run()
	return r
}

// record hands a visit over and waits for its commit. It does not end early
// when the client has gone: the visit is counted all the same. An error that is
// not [errNotCounted] means that the visit may have been counted; it is not
// sent again.
func (r *recorder) record(id visitor.ID) (visit, error) {
	r.mu.Lock()
	v, err := r.join(id)
	r.mu.Unlock()
	if err != nil {
		return visit{}, err
	}
	r.signal()
	<-v.done
	return v, v.err
}

// join puts a visit into the last batch of the queue, or into a new one.
func (r *recorder) join(id visitor.ID) (visit, error) {
	switch {
	case r.closed:
		return visit{}, errStopping
	case r.waiting == maxWaiting:
		return visit{}, errBusy
	}
	r.waiting++
	now := r.now()
	date := utcDay(now)
	var b *batch
	if n := len(r.queue); n > 0 {
		b = r.queue[n-1]
	}
	if b == nil || b.size == maxBatch || !b.date.Equal(date) {
		b = &batch{
			date:     date,
			deadline: time.Now().Add(visitTimeout),
			visits:   make(map[visitor.ID]int64),
			done:     make(chan struct{}),
		}
		r.queue = append(r.queue, b)
	}
	b.visits[id]++
	b.size++
	return visit{b, id, b.visits[id]}, nil
}

func (r *recorder) signal() {
	select {
	case r.wake <- struct{}{}:
	default: // a token is there already
	}
}

// lastFailed reports whether the last batch failed, or none was tried yet.
func (r *recorder) lastFailed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failing
}

// close turns further visits away, waits until the accepted ones are committed
// and takes this process's row out of writers.
func (r *recorder) close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.signal()
	select {
	case <-r.stopped:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if r.writer == 0 {
		return nil
	}
	return r.store.removeWriter(ctx, r.writer)
}

// run commits one batch after the other until close.
func (r *recorder) run() {
	defer close(r.stopped)
	for range r.wake {
		b, last := r.take()
		for ; b != nil; b, last = r.take() {
			start := time.Now()
			b.err = r.commit(b)
			r.metrics.batch(time.Since(start), b.err == nil)
			r.mu.Lock()
			r.waiting -= b.size
			r.failing = b.err != nil
			r.mu.Unlock()
			close(b.done)
		}
		if last {
			return
		}
	}
}

// take removes the oldest batch from the queue; nil: it is empty. last reports,
// under the same lock, that none can follow.
func (r *recorder) take() (b *batch, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queue) == 0 {
		return nil, r.closed
	}
	b = r.queue[0]
	r.queue = r.queue[1:]
	return b, false
}

// commit sends a batch until it is known to be committed or its time is over.
// What became of a batch that was sent then stays unknown, so its number must
// never be used for another: the next batch goes under a new writer.
func (r *recorder) commit(b *batch) error {
	// The batch's own context, never a request's.
	ctx, cancel := context.WithDeadline(context.Background(), b.deadline)
	defer cancel()
	ids := make([][]byte, 0, len(b.visits))
	for id := range b.visits {
		ids = append(ids, id[:])
	}
	slices.SortFunc(ids, bytes.Compare)
	visits := make([]int64, len(ids))
	for i, id := range ids {
		visits[i] = b.visits[visitor.ID(id)]
	}

	sent := false
	var cause error // the last one that is not the end of the time
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		answer, err := r.send(ctx, b.date, ids, visits)
		if err == nil {
			b.receipt, b.results = answer, make(map[visitor.ID]standing, len(ids))
			next := answer.visitors // the batch's new visitors are the latest of all
			for i, id := range slices.Backward(ids) {
				s := standing{visits: answer.numbers[i]}
				if s.visits < 0 {
					s = standing{-s.visits, next}
					next--
				}
				b.results[visitor.ID(id)] = s
			}
			return nil
		}
		if cause == nil || ctx.Err() == nil {
			cause = err
		}
		// Refused at the first try, it is certainly not applied.
		_, refused := errors.AsType[*postgres.Refusal](err)
		sent = sent || !refused && !errors.Is(err, errNotSent)
		switch {
		case errors.Is(err, errWriterGone) && !sent && ctx.Err() == nil:
			r.writer = 0 // try again under another
		case postgres.Retryable(err) && ctx.Err() == nil: // try again
		case sent:
			r.writer = 0
			r.log.Error("visits not confirmed", "visits", b.size, "err", postgres.Explain(cause))
			return err
		default:
			r.log.Error("visits not counted", "visits", b.size, "err", postgres.Explain(cause))
			return fmt.Errorf("%w: %w", errNotCounted, err)
		}
		r.metrics.retried()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// send tries once to commit the batch after r.number.
func (r *recorder) send(ctx context.Context, date time.Time, ids [][]byte, visits []int64) (*receipt, error) {
	if r.writer == 0 {
		id, err := r.store.newWriter(ctx)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNotSent, err)
		}
		r.writer, r.number = id, 0
	}
	answer, err := r.store.applyBatch(ctx, r.writer, r.number+1, date, ids, visits)
	if err != nil {
		return nil, err
	}
	r.number++
	return &answer, nil
}
