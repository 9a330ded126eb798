package main

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"footfall/internal/visitor"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every one of 20,000 visits gets another number.
func TestManyClientsOneVisitor(t *testing.T) {
	t.Parallel()
	const clients, visits = 64, 20_000
	s := newStore(t)
	r := newTestRecorder(t, s)
	var left atomic.Int64
	left.Store(visits)
	var given [visits + 1]atomic.Int32
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				v, err := r.record(numbered(1))
				if !assert.NoError(t, err) {
					return
				}
				if n := v.standing().visits; assert.LessOrEqual(t, n, int64(visits)) {
					given[n].Add(1)
				}
			}
		})
	}
	wg.Wait()
	for n := 1; n <= visits; n++ {
		require.EqualValues(t, 1, given[n].Load(), "how often number %d was given", n)
	}
	require.EqualValues(t, visits, visitsOf(t, s, numbered(1)))
	requireExactly(t, s, visits)
}

// While a batch is under way the next gathers, and each of a visitor's visits
// in it has its own number.
func TestVisitsGatherWhileABatchIsUnderWay(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	r := newTestRecorder(t, s)
	release := holdTotals(t, s)
	first := hand(t, r, numbered(2))
	underWay(t, r)
	a, b := numbered(1), numbered(2)
	second := append(hand(t, r, a, b, a), hand(t, r, a, b)...)
	release()
	assert.Equal(t, []int64{1}, numbersOf(t, first))
	assert.Equal(t, []int64{1, 2, 2, 3, 3}, numbersOf(t, second))
	assert.EqualValues(t, 6, second[0].receipt.visits)
	assert.EqualValues(t, 2, second[0].receipt.visitors)
	var batches int
	scan(t, s, &batches, `SELECT batch FROM writers`)
	assert.Equal(t, 2, batches)
	requireExactly(t, s, 6)
}

// A visit belongs to the day on which it came, whenever its batch is sent.
func TestMidnight(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	r := newTestRecorder(t, s)
	midnight := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	var clock atomic.Pointer[time.Time]
	at := func(now time.Time) { clock.Store(&now) }
	at(midnight)
	r.now = func() time.Time { return *clock.Load() }

	release := holdTotals(t, s)
	warm := hand(t, r, numbered(9))
	underWay(t, r)
	at(midnight.Add(-time.Nanosecond))
	before := hand(t, r, numbered(1), numbered(2))
	at(midnight)
	after := hand(t, r, numbered(2), numbered(3))
	require.NotSame(t, before[0].batch, after[0].batch)
	release()
	numbersOf(t, warm)
	assert.Equal(t, []int64{1, 1}, numbersOf(t, before))
	assert.Equal(t, []int64{2, 1}, numbersOf(t, after))
	today := after[0].receipt.today()
	assert.Equal(t, day{midnight, 3, 3, 2}, today)
	assert.Equal(t, day{midnight.AddDate(0, 0, -1), 2, 2, 2}, after[0].receipt.days[historyDays-2])
	requireExactly(t, s, 5)
}

// Another instance's batch of the old day may come after midnight's.
func TestLateBatch(t *testing.T) {
	t.Parallel()
	type batch struct {
		day  int // from the first day
		want [3]int64
	}
	// want: visits, visitors and new visitors of the batch's day after it.
	tests := map[string]struct {
		batches  []batch
		imported bool
	}{
		"again on the same day":            {batches: []batch{{0, [3]int64{1, 1, 1}}, {0, [3]int64{2, 1, 1}}}},
		"next day":                         {batches: []batch{{0, [3]int64{1, 1, 1}}, {1, [3]int64{1, 1, 0}}}},
		"late, seen on both days":          {batches: []batch{{0, [3]int64{1, 1, 1}}, {1, [3]int64{1, 1, 0}}, {0, [3]int64{2, 1, 1}}}},
		"late, first visit after midnight": {batches: []batch{{1, [3]int64{1, 1, 1}}, {0, [3]int64{1, 1, 0}}}},
		"late twice":                       {batches: []batch{{1, [3]int64{1, 1, 1}}, {0, [3]int64{1, 1, 0}}, {0, [3]int64{2, 1, 0}}}},
		"late, then on":                    {batches: []batch{{1, [3]int64{1, 1, 1}}, {0, [3]int64{1, 1, 0}}, {1, [3]int64{2, 1, 1}}, {2, [3]int64{1, 1, 0}}}},
		"late after a gap":                 {batches: []batch{{0, [3]int64{1, 1, 1}}, {2, [3]int64{1, 1, 0}}, {1, [3]int64{1, 1, 0}}, {1, [3]int64{2, 1, 0}}}},
		"imported":                         {batches: []batch{{0, [3]int64{1, 1, 0}}, {0, [3]int64{2, 1, 0}}, {1, [3]int64{1, 1, 0}}}, imported: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			id := numbered(1)
			visits := int64(len(tt.batches))
			if tt.imported {
				_, err := s.reads.ExecContext(t.Context(), `INSERT INTO visitors (id, visits) VALUES ($1, 5)`, id[:])
				require.NoError(t, err)
				_, err = s.reads.ExecContext(t.Context(), `
					UPDATE totals
					SET visits = 5, visitors = 1, imported_visits = 5, imported_visitors = 1`)
				require.NoError(t, err)
				visits += 5
			}
			writer, err := s.newWriter(t.Context())
			require.NoError(t, err)
			first := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
			for i, b := range tt.batches {
				got, err := s.applyBatch(t.Context(), writer, int64(i+1), first.AddDate(0, 0, b.day), [][]byte{id[:]}, []int64{1})
				require.NoError(t, err)
				today := got.today()
				assert.Equal(t, b.want, [3]int64{today.visits, today.visitors, today.newVisitors}, "batch %d", i+1)
				assert.EqualValues(t, 1, got.visitors)
			}
			requireExactly(t, s, visits)
		})
	}
}

// Past the bound a visit is turned away at once, and none before it.
func TestTooManyWait(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	r := newTestRecorder(t, s)
	release := holdTotals(t, s)
	waiting := hand(t, r, numbered(0))
	underWay(t, r)
	ids := make([]visitor.ID, maxWaiting-1)
	for i := range ids {
		ids[i] = numbered(i)
	}
	waiting = append(waiting, hand(t, r, ids...)...)
	_, err := r.record(numbered(1))
	require.ErrorIs(t, err, errBusy)
	require.ErrorIs(t, err, errNotCounted)

	release()
	numbersOf(t, waiting)
	for _, v := range waiting {
		require.LessOrEqual(t, v.size, maxBatch)
	}
	_, err = r.record(numbered(1))
	require.NoError(t, err)
	requireExactly(t, s, maxWaiting+1)
	r.mu.Lock()
	defer r.mu.Unlock()
	assert.Zero(t, r.waiting)
}

// A visitor waits for visitTimeout and no longer; those who come later do not
// pay for it.
func TestWaitIsBounded(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	r := newTestRecorder(t, s)
	release := holdTotals(t, s)
	start := time.Now()
	_, err := r.record(numbered(1))
	took := time.Since(start)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.GreaterOrEqual(t, took, visitTimeout)
	assert.Less(t, took, 5*time.Second)
	release()
	awaitQuiet(t, s)
	v := hand(t, r, numbered(1))
	n := numbersOf(t, v)[0]
	assert.Contains(t, []int64{1, 2}, n, "the unconfirmed visit may have been counted")
	requireExactly(t, s, n)
}

// A lock of another program costs visits only for as long as it is held.
func TestLockOfAnotherProgram(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	r := newTestRecorder(t, s)
	var confirmed, unconfirmed atomic.Int64
	var wg sync.WaitGroup
	held, stop := make(chan struct{}), make(chan struct{})
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := r.record(numbered(1)); err == nil {
					confirmed.Add(1)
				} else if unconfirmed.Add(1) == 16 {
					close(held) // two rounds of the clients have waited in vain
				}
			}
		})
	}
	eventually(t, "counting", func() bool { return confirmed.Load() > 100 })
	release := holdTotals(t, s)
	<-held
	release()
	before := confirmed.Load()
	eventually(t, "counting again", func() bool { return confirmed.Load() > before+100 })
	close(stop)
	wg.Wait()
	awaitQuiet(t, s)
	n := visitsOf(t, s, numbered(1))
	assert.GreaterOrEqual(t, n, confirmed.Load())
	assert.LessOrEqual(t, n, confirmed.Load()+unconfirmed.Load())
	requireExactly(t, s, n)
}

// A batch whose answer is lost is sent again, counts once, and its visitors
// get the numbers that they would have got.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	databaseURL := newDatabase(t)
	s := openTestStore(t, databaseURL)
	prepared(t, s)
	cutter, through := newCutter(t, databaseURL)
	r := newTestRecorder(t, openTestStore(t, through))
	var total int64
	for range 6 {
		for _, how := range []cut{cutAnswer, cutAfter, cutRequest} {
			cutter.arm(how)
			got := numbersOf(t, hand(t, r, numbered(1), numbered(2), numbered(1)))
			assert.Equal(t, []int64{total*2 + 1, total + 1, total*2 + 2}, got)
			total++
			require.True(t, cutter.done())
		}
	}
	assert.EqualValues(t, 18, cutter.cuts)
	requireExactly(t, s, 3*total)
}

// The first try is still waiting in the database when the second comes.
func TestAnswerLostWhileTheBatchWaits(t *testing.T) {
	t.Parallel()
	databaseURL := newDatabase(t)
	s := openTestStore(t, databaseURL)
	prepared(t, s)
	cutter, through := newCutter(t, databaseURL)
	r := newTestRecorder(t, openTestStore(t, through))
	numbersOf(t, hand(t, r, numbered(1)))

	release := holdTotals(t, s)
	visits := hand(t, r, numbered(1), numbered(2))
	eventually(t, "the first try waits", func() bool { return blocked(t, s) == 1 })
	cutter.abandon()
	eventually(t, "both tries wait", func() bool { return blocked(t, s) == 2 })
	release()
	assert.Equal(t, []int64{2, 1}, numbersOf(t, visits))
	awaitQuiet(t, s)
	requireExactly(t, s, 3)
	assert.Equal(t, []int64{3}, numbersOf(t, hand(t, r, numbered(1))))
}

// What became of a batch that was given up is unknown, so its number is not
// used again: it could be taken for the next one's.
func TestNumberOfAGivenUpBatch(t *testing.T) {
	t.Parallel()
	databaseURL := newDatabase(t)
	s := openTestStore(t, databaseURL)
	prepared(t, s)
	cutter, through := newCutter(t, databaseURL)
	r := newTestRecorder(t, openTestStore(t, through))
	numbersOf(t, hand(t, r, numbered(1)))

	release := holdTotals(t, s)
	given := make(chan error, 1)
	go func() {
		_, err := r.record(numbered(1))
		given <- err
	}()
	eventually(t, "the first try waits", func() bool { return blocked(t, s) == 1 })
	cutter.abandon()
	require.Error(t, <-given)
	release()
	eventually(t, "the given-up batch was counted after all", func() bool { return visitsOf(t, s, numbered(1)) == 2 })
	assert.Equal(t, []int64{1}, numbersOf(t, hand(t, r, numbered(2))))
	requireExactly(t, s, 3)
}

// Two days idle, and another process has cleaned up.
func TestWritersRowIsGone(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	r := newTestRecorder(t, s)
	numbersOf(t, hand(t, r, numbered(1)))
	_, err := s.reads.ExecContext(t.Context(), `DELETE FROM writers`)
	require.NoError(t, err)
	assert.Equal(t, []int64{2}, numbersOf(t, hand(t, r, numbered(1))))
	requireExactly(t, s, 2)
}

// The row of a batch whose answer was lost is gone: nothing tells whether the
// batch was applied, so it is not sent again under another row.
func TestWritersRowIsGoneAfterALostAnswer(t *testing.T) {
	t.Parallel()
	databaseURL := newDatabase(t)
	s := openTestStore(t, databaseURL)
	prepared(t, s)
	cutter, through := newCutter(t, databaseURL)
	r := newTestRecorder(t, openTestStore(t, through))
	for range 2 { // until its statements are prepared
		numbersOf(t, hand(t, r, numbered(1)))
	}

	cutter.hold(true)
	v := hand(t, r, numbered(1))[0]
	eventually(t, "the batch is committed", func() bool { return visitsOf(t, s, numbered(1)) == 3 })
	execute(t, s.reads, `DELETE FROM writers`)
	cutter.hold(false)
	cutter.abandon()
	<-v.done
	require.ErrorIs(t, v.err, errWriterGone)
	require.NotErrorIs(t, v.err, errNotCounted)
	assert.Equal(t, []int64{4}, numbersOf(t, hand(t, r, numbered(1))))
	requireExactly(t, s, 4)
}

// An older state of the database was put in place under a running process.
func TestWriterIsOutOfStep(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	r := newTestRecorder(t, s)
	numbersOf(t, hand(t, r, numbered(1)))
	_, err := s.reads.ExecContext(t.Context(), `UPDATE writers SET batch = batch + 5`)
	require.NoError(t, err)
	assert.Equal(t, []int64{2}, numbersOf(t, hand(t, r, numbered(1))), "under another row")
	requireExactly(t, s, 2)
}

func TestOldWritersGo(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	_, err := s.reads.ExecContext(t.Context(), `
		INSERT INTO writers (id, committed_at)
		VALUES (1, now() - interval '25 hours'), (2, now() - interval '23 hours')`)
	require.NoError(t, err)
	r := newTestRecorder(t, s)
	numbersOf(t, hand(t, r, numbered(1)))
	var ids string
	scan(t, s, &ids, `SELECT string_agg(id::text, ' ') FROM writers WHERE id IN (1, 2)`)
	assert.Equal(t, "2", ids)
	closeRecorder(t, r)
	scan(t, s, &ids, `SELECT string_agg(id::text, ' ') FROM writers`)
	assert.Equal(t, "2", ids, "a process that ends takes its row along")
}

// An old primary that was read-only when the connection was made would refuse
// on it forever.
func TestReadOnlyServerIsLeft(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.reads.SetMaxIdleConns(1) // of before: it may write
	alterDatabase(t, s, "default_transaction_read_only = on")
	r := newTestRecorder(t, s)
	v := hand(t, r, numbered(1))
	eventually(t, "the server refuses", func() bool {
		r.metrics.mu.Lock()
		defer r.metrics.mu.Unlock()
		return r.metrics.batches["retried"] > 0
	})
	_, err := s.reads.ExecContext(t.Context(), `SET default_transaction_read_only = off`)
	require.NoError(t, err)
	alterDatabase(t, s, "default_transaction_read_only = off")
	eventually(t, "counting again", func() bool { return isDone(v[0]) })
	assert.Equal(t, []int64{1}, numbersOf(t, v))
}

// close commits what was accepted and turns away what comes after.
func TestCloseFlushes(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	log, _ := newLog(t)
	r := newRecorder(s, log, newMetrics())
	release := holdTotals(t, s)
	visits := hand(t, r, numbered(1))
	underWay(t, r)
	visits = append(visits, hand(t, r, numbered(1), numbered(2))...)
	closed := make(chan error, 1)
	go func() { closed <- r.close(context.WithoutCancel(t.Context())) }()
	eventually(t, "it is closing", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.closed
	})
	_, err := r.record(numbered(1))
	require.ErrorIs(t, err, errStopping)
	release()
	assert.Equal(t, []int64{1, 2, 1}, numbersOf(t, visits))
	require.NoError(t, <-closed)
	requireExactly(t, s, 3)
}

// close does not wait longer than it may.
func TestCloseIsBounded(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	r := newTestRecorder(t, s)
	release := holdTotals(t, s)
	v := hand(t, r, numbered(1))
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	require.ErrorIs(t, r.close(ctx), enough)
	release()
	assert.Equal(t, []int64{1}, numbersOf(t, v), "the batch is finished all the same")
}

// Instances whose batches hold the same visitors wait for each other in one
// direction only.
func TestInstancesDoNotDeadlock(t *testing.T) {
	t.Parallel()
	databaseURL := newDatabase(t)
	s := openTestStore(t, databaseURL)
	prepared(t, s)
	// Found at once, not after a second of waiting.
	alterDatabase(t, s, "deadlock_timeout = 1")
	const instances, rounds, perBatch, visitors = 3, 150, 60, 80
	var wg sync.WaitGroup
	midnight := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for i := range instances {
		r := newTestRecorder(t, openTestStore(t, databaseURL))
		random := rand.New(rand.NewPCG(uint64(i), 0))
		r.now = func() time.Time { return midnight.Add(time.Duration(i-1) * time.Hour) }
		wg.Go(func() {
			for range rounds {
				ids := make([]visitor.ID, perBatch)
				for j := range ids {
					ids[j] = numbered(random.IntN(visitors))
				}
				for _, v := range hand(t, r, ids...) {
					<-v.done
					assert.NoError(t, v.err)
				}
			}
			r.metrics.mu.Lock()
			defer r.metrics.mu.Unlock()
			assert.Zero(t, r.metrics.batches["retried"], "a batch that is chosen to end a deadlock is sent again")
		})
	}
	wg.Wait()
	requireExactly(t, s, instances*rounds*perBatch)
	var deadlocks int
	scan(t, s, &deadlocks, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`)
	assert.Zero(t, deadlocks)
}

// model is what a map says of the count: every row of visitors, days and totals.
type model struct {
	visitors map[visitor.ID]*modelVisitor
	days     map[time.Time]*day
	visits   int64

	forgotten int // visitors without a row
}

type modelVisitor struct {
	visits int64
	days   map[time.Time]bool // on which they were seen
	first  time.Time          // the day of the batch that came first
}

// count adds one visit, and returns its number when no other is on its way.
func (m *model) count(id visitor.ID, date time.Time) int64 {
	v := m.visitors[id]
	if v == nil {
		v = &modelVisitor{days: map[time.Time]bool{}, first: date}
		m.visitors[id] = v
	}
	d := m.days[date]
	if d == nil {
		d = &day{date: date}
		m.days[date] = d
	}
	if v.visits == 0 {
		d.newVisitors++
	}
	if !v.days[date] {
		v.days[date] = true
		d.visitors++
	}
	v.visits++
	d.visits++
	m.visits++
	return v.visits
}

// requireEqual compares every row of the database with the model.
func (m *model) requireEqual(t testing.TB, s *store) {
	t.Helper()
	var visits, visitors int64
	require.NoError(t, s.reads.QueryRowContext(t.Context(), `SELECT visits, visitors FROM totals`).Scan(&visits, &visitors))
	require.Equal(t, [2]int64{m.visits, int64(len(m.visitors) + m.forgotten)}, [2]int64{visits, visitors}, "totals")

	rows, err := s.reads.QueryContext(t.Context(), `SELECT day, visits, visitors, new_visitors FROM days`)
	require.NoError(t, err)
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		var d day
		require.NoError(t, rows.Scan(&d.date, &d.visits, &d.visitors, &d.newVisitors))
		d.date = d.date.UTC()
		require.Contains(t, m.days, d.date)
		require.Equal(t, *m.days[d.date], d)
	}
	require.NoError(t, rows.Err())
	require.Len(t, m.days, n, "days")

	rows, err = s.reads.QueryContext(t.Context(), `SELECT id, visits, first_seen, last_seen, seen_day_before FROM visitors`)
	require.NoError(t, err)
	defer rows.Close()
	for n = 0; rows.Next(); n++ {
		var id []byte
		var visits int64
		var first, last time.Time
		var before bool
		require.NoError(t, rows.Scan(&id, &visits, &first, &last, &before))
		want := m.visitors[visitor.ID(id)]
		require.NotNil(t, want)
		newest := slices.MaxFunc(slices.Collect(maps.Keys(want.days)), time.Time.Compare)
		require.Equal(t, []any{want.visits, want.first, newest, want.days[newest.AddDate(0, 0, -1)]},
			[]any{visits, first.UTC(), last.UTC(), before})
	}
	require.NoError(t, rows.Err())
	require.Len(t, m.visitors, n, "visitors")
}

// Several instances count at once while connections are cut, backends are
// terminated, processes are replaced and visitors are forgotten: the numbers of a visitor are 1, 2, 3,
// each given once, and in the end every row is what the model says. All visits
// of a round are of one day, so that their order does not matter to the model;
// the day may be the one before the newest, as behind a clock that is late.
func TestAgainstModel(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	databaseURL := newDatabase(t)
	s := openTestStore(t, databaseURL)
	prepared(t, s)
	newest := time.Date(2026, 2, 27, 0, 0, 0, 0, time.UTC)
	now := newest
	type instance struct {
		*recorder
		cutter *cutter
		url    string // through the cutter
	}
	var instances [3]instance
	start := func(i *instance) {
		i.recorder = newTestRecorder(t, openTestStore(t, i.url))
		i.recorder.now = func() time.Time { return now }
	}
	for i := range instances {
		instances[i].cutter, instances[i].url = newCutter(t, databaseURL)
		start(&instances[i])
	}
	m := &model{visitors: map[visitor.ID]*modelVisitor{}, days: map[time.Time]*day{}}
	given := map[visitor.ID]map[int64]bool{}
	for range 40 {
		if random.IntN(4) == 0 {
			newest = newest.AddDate(0, 0, 1+random.IntN(2))
		}
		now = newest.AddDate(0, 0, -random.IntN(2))
		type handed struct {
			visit
			id visitor.ID
		}
		var round []handed
		for range 6 {
			i := &instances[random.IntN(len(instances))]
			switch random.IntN(8) {
			case 0, 1, 2:
				i.cutter.arm([]cut{cutRequest, cutAfter, cutAnswer}[random.IntN(3)])
			case 3:
				_, err := s.reads.ExecContext(t.Context(), `
					SELECT pg_terminate_backend(pid)
					FROM pg_stat_activity
					WHERE datname = current_database() AND query LIKE '%writer AS%' AND pid <> pg_backend_pid()`)
				require.NoError(t, err)
			case 4: // a new process
				closeRecorder(t, i.recorder)
				start(i)
			}
			ids := make([]visitor.ID, 1+random.IntN(20))
			for j := range ids {
				ids[j] = numbered(random.IntN(60))
			}
			for j, v := range hand(t, i.recorder, ids...) {
				round = append(round, handed{v, ids[j]})
			}
		}
		for _, v := range round {
			<-v.done
			require.NoError(t, v.err)
			m.count(v.id, utcDay(now))
			if given[v.id] == nil {
				given[v.id] = map[int64]bool{}
			}
			require.False(t, given[v.id][v.standing().visits], "number %d was given twice", v.standing().visits)
			given[v.id][v.standing().visits] = true
		}
		for _, v := range round {
			require.Len(t, given[v.id], int(m.visitors[v.id].visits))
			require.True(t, given[v.id][m.visitors[v.id].visits], "the numbers have no gap")
		}
		if id := numbered(random.IntN(60)); m.visitors[id] != nil && random.IntN(2) == 0 {
			visits, err := s.forget(t.Context(), id)
			require.NoError(t, err)
			require.Equal(t, m.visitors[id].visits, visits)
			delete(m.visitors, id)
			delete(given, id)
			m.forgotten++
			requireVerified(t, s)
		}
	}
	require.NotZero(t, m.forgotten)
	cuts := 0
	for _, i := range instances {
		cuts += i.cutter.cuts
	}
	require.NotZero(t, cuts)
	m.requireEqual(t, s)
	requireVerified(t, s)
}

// A batch whose time is over before it was sent was certainly not counted, and
// costs no writer: its number was never used.
func TestExpiredBeforeItWasSent(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	r := newTestRecorder(t, s)
	numbersOf(t, hand(t, r, numbered(1)))
	log, lines := newLog(t)
	r.log = log
	r.mu.Lock()
	v, err := r.join(numbered(1))
	require.NoError(t, err)
	v.deadline = time.Now().Add(-time.Millisecond)
	r.mu.Unlock()
	r.signal()
	<-v.done
	require.ErrorIs(t, v.err, errNotCounted)
	assert.Contains(t, lines.String(), "deadline exceeded")
	assert.Equal(t, []int64{2}, numbersOf(t, hand(t, r, numbered(1))))
	assert.EqualValues(t, 1, queryInt(t, s.reads, `SELECT count(*) FROM writers`))
	requireExactly(t, s, 2)
}

// Each of the visitors that a batch brings has a place of its own, the last ones
// of all, also where the answer was lost and the batch is sent again.
func TestPlacesOfNewVisitors(t *testing.T) {
	t.Parallel()
	databaseURL := newDatabase(t)
	s := openTestStore(t, databaseURL)
	prepared(t, s)
	cutter, through := newCutter(t, databaseURL)
	r := newTestRecorder(t, openTestStore(t, through))
	numbersOf(t, hand(t, r, numbered(2), numbered(5), numbered(5)))
	// A visitor that was imported without a visit is not new.
	imported := numbered(7)
	execute(t, s.reads, `INSERT INTO visitors (id, visits) VALUES ($1, 0)`, imported[:])
	execute(t, s.reads, `UPDATE totals SET visitors = visitors + 10, imported_visitors = 10`)
	cutter.arm(cutAnswer)
	visits := hand(t, r, numbered(4), numbered(2), numbered(1), numbered(7), numbered(4), numbered(9))
	var places, numbers []int64
	for _, v := range visits {
		<-v.done
		require.NoError(t, v.err)
		places, numbers = append(places, v.standing().place), append(numbers, v.standing().visits)
	}
	require.True(t, cutter.done())
	assert.Equal(t, []int64{1, 2, 1, 1, 2, 1}, numbers)
	assert.Zero(t, places[1], "came before")
	assert.Zero(t, places[3], "imported")
	assert.Zero(t, places[4], "the second visit")
	assert.ElementsMatch(t, []int64{13, 14, 15}, []int64{places[0], places[2], places[5]})
	assert.Equal(t, int64(15), queryInt(t, s.reads, `SELECT visitors FROM totals`))
}

// A visit that finds no database in its time is not counted, and is told so. The
// log gives the reason, not the end of the time, and the tries leave pauses.
func TestVisitWithoutADatabase(t *testing.T) {
	t.Parallel()
	s := openTestStore(t, "postgres://nobody@127.0.0.1:1/nothing")
	r := newTestRecorder(t, s)
	log, lines := newLog(t)
	r.log = log
	_, err := r.record(numbered(1))
	require.ErrorIs(t, err, errNotCounted)
	assert.True(t, r.lastFailed())
	assert.Contains(t, lines.String(), "connection refused")
	r.metrics.mu.Lock()
	defer r.metrics.mu.Unlock()
	assert.Less(t, r.metrics.batches["retried"], uint64(100))
}

var pageNumber = regexp.MustCompile(`You have visited this page <strong>([0-9,]+)</strong>`)

// Four processes count for one database, and none miscounts for another.
func TestInstancesShareADatabase(t *testing.T) {
	t.Parallel()
	const visitors, clients, visitsEach = 1000, 32, 150
	databaseURL := newDatabase(t)
	var instances []*running
	for range 4 {
		instances = append(instances, startProcess(t, command(t, nil, "DATABASE_URL", databaseURL, "LISTEN_ADDR", "127.0.0.1:0")))
	}
	l := newLedger()
	var wg sync.WaitGroup
	for c := range clients {
		random := rand.New(rand.NewPCG(uint64(c), 0))
		client := &http.Client{Transport: &http.Transport{}, Timeout: 30 * time.Second}
		wg.Go(func() {
			for range visitsEach {
				sent := time.Now()
				visitor := random.IntN(visitors)
				number, err := visitPage(client, instances[random.IntN(len(instances))].url(), visitor)
				assert.NoError(t, err)
				l.note(visitor, number, sent, err)
			}
			client.CloseIdleConnections()
		})
	}
	wg.Wait()
	s := openTestStore(t, databaseURL)
	lost, doubled := l.compare(rowOf(t, s, prepared(t, s)))
	assert.Zero(t, lost)
	assert.Zero(t, doubled)
	assert.EqualValues(t, clients*visitsEach, l.allConfirmed)
	requireExactly(t, s, clients*visitsEach)
	output, err := command(t, []string{"verify"}, "DATABASE_URL", databaseURL).CombinedOutput()
	assert.NoError(t, err, "%s", output)
	for _, i := range instances {
		i.stop()
		require.NoError(t, <-i.ended)
	}
	var writers int
	scan(t, s, &writers, `SELECT count(*) FROM writers`)
	assert.Zero(t, writers)
}

// A limit, not a promise: a proxy that repeats a GET on another instance, as the
// first one died between the commit and its answer, makes a second visit.
func TestRepeatedRequestIsASecondVisit(t *testing.T) {
	t.Parallel()
	databaseURL := newDatabase(t)
	cutter, through := newCutter(t, databaseURL)
	dying := command(t, nil, "DATABASE_URL", through, "LISTEN_ADDR", "127.0.0.1:0")
	first := startProcess(t, dying)
	second := startProcess(t, command(t, nil, "DATABASE_URL", databaseURL, "LISTEN_ADDR", "127.0.0.1:0"))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for want := range int64(2) { // until the statements of a batch are prepared
		number, err := visitPage(client, first.url(), 1)
		require.NoError(t, err)
		require.Equal(t, want+1, number)
	}

	cutter.hold(true)
	unanswered := make(chan error, 1)
	go func() {
		_, err := visitPage(client, first.url(), 1)
		unanswered <- err
	}()
	s := openTestStore(t, databaseURL)
	eventually(t, "the visit is committed", func() bool { return queryInt(t, s.reads, `SELECT visits FROM totals`) == 3 })
	require.NoError(t, dying.Process.Kill())
	require.Error(t, <-unanswered)
	number, err := visitPage(client, second.url(), 1)
	require.NoError(t, err)
	assert.EqualValues(t, 4, number, "the repetition of visit 3")
	requireExactly(t, s, 4)
}
