package main

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A forgotten visitor leaves no row and no change of the numbers, and is new
// the next time.
func TestForget(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	r := start(t, "DATABASE_URL", url)
	s := openTestStore(t, url)
	visit := func(address, sentence string) {
		t.Helper()
		_, body := r.get(t, "/", "X-Forwarded-For", address)
		assert.Contains(t, pageText(body), sentence)
	}
	forget := func(address, want string) {
		t.Helper()
		before := queryInt(t, s.reads, `SELECT count(*) FROM visitors`)
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), []string{"forget", address}, environment("DATABASE_URL", url), &out))
		assert.Equal(t, want+"\n", out.String(), "and no address")
		gone := int64(0)
		if strings.HasPrefix(want, "forgotten") {
			gone = 1
		}
		assert.Equal(t, before-gone, queryInt(t, s.reads, `SELECT count(*) FROM visitors`))
		requireVerified(t, s)
	}
	for _, address := range []string{"192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8:1:2::1", "2001:db8:1:2::2"} {
		visit(address, "You have visited this page ")
	}
	forget("192.0.2.9", "nothing is kept of this visitor")
	forget("192.0.2.1", "forgotten: a visitor with 2 visits; the totals stay as they are")
	forget("192.0.2.1", "nothing is kept of this visitor")
	forget(" [2001:db8:1:2:ffff::]:443\n", "forgotten: a visitor with 2 visits; the totals stay as they are")
	visit("192.0.2.2", "You have visited this page 2 times.")
	visit("192.0.2.1", "You have visited this page 1 time.")
	assert.Equal(t, int64(7), queryInt(t, s.reads, `SELECT visits FROM totals`))
	assert.Equal(t, int64(4), queryInt(t, s.reads, `SELECT visitors FROM totals`), "one came again as a new one")
	requireVerified(t, s)

	// The address on standard input is on no command line.
	cmd := command(t, []string{"forget"}, "DATABASE_URL", url)
	cmd.Stdin = strings.NewReader("::ffff:192.0.2.1\nanything\n")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, "forgotten: a visitor with 1 visit; the totals stay as they are\n", string(out))
	assert.NotContains(t, r.lines.String(), "192.0.2")
	requireVerified(t, s)
}

// At a terminal the line ends the input, not the end of the file.
func TestReadAddress(t *testing.T) {
	t.Parallel()
	in, terminal := io.Pipe()
	go io.WriteString(terminal, "192.0.2.7\n")
	line, err := readAddress(in)
	require.NoError(t, err)
	assert.Equal(t, "192.0.2.7\n", line)
	line, err = readAddress(strings.NewReader("192.0.2.7"))
	require.NoError(t, err)
	assert.Equal(t, "192.0.2.7", line)
}

func TestForgetFails(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	forget := func(address string, pairs ...string) error {
		return run(t.Context(), []string{"forget", address}, environment(append(pairs, "DATABASE_URL", url)...), new(bytes.Buffer))
	}
	err := forget("198.51.100.300")
	require.ErrorContains(t, err, "forget wants one address, such as ")
	assert.NotContains(t, err.Error(), "300")
	_, usage := errors.AsType[*usageError](err)
	assert.True(t, usage)
	assert.ErrorContains(t, forget("198.51.100.7 198.51.100.8"), "forget wants one address, such as ")
	assert.EqualError(t, forget("198.51.100.7"), "the schema is at version 0, this program needs 2: run footfall migrate, or look at the database's name in DATABASE_URL")
	prepared(t, openTestStore(t, url))
	assert.NoError(t, forget("198.51.100.7"))
	assert.ErrorContains(t, forget("198.51.100.7", "VISITOR_KEY", strings.Repeat("x", 32)), "set the earlier key again")
}

// Visitors whose visits before and after the import are known are forgotten whole.
func TestForgetImported(t *testing.T) {
	t.Parallel()
	s := openTestStore(t, newDatabase(t))
	prepared(t, s)
	r := newTestRecorder(t, s)
	both, before := someone("both"), someone("before")
	execute(t, s.reads, `INSERT INTO visitors (id, visits) VALUES ($1, 5), ($2, 7)`, both[:], before[:])
	execute(t, s.reads, `UPDATE totals SET visits = 12, visitors = 2, imported_visits = 12, imported_visitors = 2`)
	_, err := r.record(both)
	require.NoError(t, err)
	requireVerified(t, s)
	for id, want := range map[visitorID]int64{both: 6, before: 7} {
		visits, err := s.forget(t.Context(), id)
		require.NoError(t, err)
		assert.Equal(t, want, visits)
		requireVerified(t, s)
	}
}

// A connection that breaks leaves the visitor forgotten, once.
func TestForgetOverABrokenConnection(t *testing.T) {
	t.Parallel()
	c, through := newCutter(t, newDatabase(t))
	s := openTestStore(t, through)
	prepared(t, s)
	r := newTestRecorder(t, s)
	for how, want := range map[cut]int64{cutRequest: 1, cutAnswer: 0} {
		count(t, r, "ada")
		_, err := s.forget(t.Context(), someone("bob")) // the statement is prepared, so the next answer is the commit's
		require.NoError(t, err)
		c.arm(how)
		visits, err := s.forget(t.Context(), someone("ada"))
		require.NoError(t, err)
		require.True(t, c.done())
		assert.Equal(t, want, visits)
		assert.Zero(t, queryInt(t, s.reads, `SELECT count(*) FROM visitors`))
		requireVerified(t, s)
	}
}

// Two who forget at once, and visitors who keep coming, get in nobody's way.
func TestForgetWhileCounting(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := openTestStore(t, url)
	prepared(t, s)
	var counting, forgetting sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		r := newTestRecorder(t, openTestStore(t, url))
		for i := range 8 {
			counting.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
						_, err := r.record(numbered((i + n) % 5))
						assert.NoError(t, err)
					}
				}
			})
		}
	}
	for i := range 2 {
		other := openTestStore(t, url)
		forgetting.Go(func() {
			for n := range 200 {
				_, err := other.forget(t.Context(), numbered((i+n)%5))
				assert.NoError(t, err)
			}
		})
	}
	forgetting.Wait()
	close(stop)
	counting.Wait()
	assert.NotZero(t, queryInt(t, s.reads, `SELECT forgotten_visitors FROM totals`))
	requireVerified(t, s)
}

// The columns come while a program that does not know them is counting.
func TestForgottenColumnsComeWhileCounting(t *testing.T) {
	t.Parallel()
	s := openTestStore(t, newDatabase(t))
	applyMigrations(t, s.reads, ourMigrations()[:1]...)
	r := newTestRecorder(t, s)
	for range 10 { // its statements are prepared
		count(t, r, "ada")
		_, _, err := s.look(t.Context(), utcDay(r.now()), nil)
		require.NoError(t, err)
	}
	applyMigrations(t, s.reads, ourMigrations()...)
	for range 10 {
		count(t, r, "ada")
		_, _, err := s.look(t.Context(), utcDay(r.now()), nil)
		require.NoError(t, err)
	}
	r.metrics.mu.Lock()
	assert.Zero(t, r.metrics.batches["retried"])
	r.metrics.mu.Unlock()
	requireExactly(t, s, 20)
	requireVerified(t, s)
}
