//go:build soak

package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fault is one row of the table.
type fault struct {
	name          string
	left          int // how often it is still to strike
	strike        func()
	took          []time.Duration // until counting again
	lost, doubled int64
}

// Clients count on while one thing after the other breaks. After each fault
// every confirmed visit is in the database, once. The table that this
// prints and writes to bench/out/faults.md is the README's.
func TestSoakFaults(t *testing.T) {
	const clients, visitors = 16, 50
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	// What is confirmed must survive the server's fall: no fast options here.
	postgres := newCluster(t, "fsync=on", "full_page_writes=on")
	cutter, through := newCutter(t, postgres.URL("footfall"))
	// One socket for all lives of the program, as on a deployed host: a client's
	// connection can take a port while the program is dead, but never a socket.
	socket := filepath.Join(t.TempDir(), "footfall.sock")
	begin := func() (*exec.Cmd, *running) {
		cmd := command(t, nil, "DATABASE_URL", through, "LISTEN_ADDR", "unix:"+socket)
		r := startProcess(t, cmd)
		r.lines.drop()
		return cmd, r
	}
	process, footfall := begin()
	s := openTestStore(t, postgres.URL("footfall"))
	s.reads.SetMaxIdleConns(0) // none that a fault has broken
	h := prepared(t, s)

	l := newLedger()
	var pause sync.RWMutex // held by the test while no visits may come
	stop := make(chan struct{})
	var wg sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer end()
	for i := range clients {
		random := rand.New(rand.NewPCG(seed, uint64(i+1)))
		// A connection for each visit: over one that breaks before its answer,
		// net/http sends a GET a second time, and the test could not count along.
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial(socket)}, Timeout: 10 * time.Second}
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				pause.RLock()
				visitor := random.IntN(visitors)
				sent := time.Now()
				number, err := visitPage(client, "http://footfall/", visitor)
				dial, failed := errors.AsType[*net.OpError](err)
				refused := failed && dial.Op == "dial"
				if !refused { // then there was no visit
					l.note(visitor, number, sent, err)
				}
				pause.RUnlock()
				if refused {
					<-time.After(5 * time.Millisecond) // leaves the processor to what is starting
				}
			}
		})
	}

	cutter.onCut = l.watch
	cutNext := func(how cut) func() {
		return func() {
			cutter.arm(how)
			eventually(t, "the cut", cutter.done)
		}
	}
	faults := []*fault{
		{name: "connection cut before the batch is passed on", left: 70, strike: cutNext(cutRequest)},
		{name: "connection cut right after the batch is passed on", left: 80, strike: cutNext(cutAfter)},
		{name: "connection cut after the commit, its answer lost", left: 80, strike: cutNext(cutAnswer)},
		{name: "every backend terminated", left: 40, strike: func() {
			var ended int
			scan(t, s, &ended, `
				SELECT count(pg_terminate_backend(pid))
				FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid()`)
			l.watch()
		}},
		{name: "PostgreSQL stopped with -m immediate, started again", left: 40, strike: func() {
			postgres.end(t, syscall.SIGQUIT) // the signal that pg_ctl sends
			l.watch()
			postgres.begin(t)
		}},
		{name: "footfall killed with -9, started again", left: 40, strike: func() {
			require.NoError(t, process.Process.Kill())
			<-footfall.ended
			l.watch()
			process, footfall = begin()
		}},
	}
	// check compares while no visits come.
	check := func(f *fault) {
		pause.Lock()
		defer pause.Unlock()
		awaitQuiet(t, s)
		lost, doubled := l.compare(rowOf(t, s, h))
		assert.Zero(t, lost, "lost by: %s", f.name)
		assert.Zero(t, doubled, "doubled by: %s", f.name)
		f.lost += lost
		f.doubled += doubled
		checks, err := s.verify(t.Context())
		require.NoError(t, err)
		for _, c := range checks {
			assert.Equal(t, c.kept, c.sum, "%s, after: %s", c.what, f.name)
		}
	}
	for rest := slices.Clone(faults); len(rest) > 0; {
		i := random.IntN(len(rest))
		f := rest[i]
		resumed := time.Now()
		eventually(t, "counting", func() bool { return l.countedSince(resumed) })
		f.strike()
		eventually(t, "counting again", func() bool { return l.back() > 0 })
		f.took = append(f.took, l.back())
		check(f)
		if f.left--; f.left == 0 {
			rest = slices.Delete(rest, i, i+1)
		}
	}

	end()
	var table strings.Builder
	fmt.Fprintln(&table, "| fault | times | lost | doubled | seconds until counting again: median | longest |")
	fmt.Fprintln(&table, "| --- | ---: | ---: | ---: | ---: | ---: |")
	for _, f := range faults {
		slices.Sort(f.took)
		fmt.Fprintf(&table, "| %s | %d | %d | %d | %.3f | %.3f |\n", f.name, len(f.took), f.lost, f.doubled,
			f.took[len(f.took)/2].Seconds(), f.took[len(f.took)-1].Seconds())
	}
	fmt.Fprintf(&table, "\n%d visits were confirmed; %d requests got a 503 or no answer.\n", l.allConfirmed, l.allUnconfirmed)
	t.Log("\n" + table.String())
	require.NoError(t, os.MkdirAll(filepath.Join("bench", "out"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join("bench", "out", "faults.md"), []byte(table.String()), 0o644))
}

// Nobody reads the log for a minute, in which 400 requests per second come, half
// of them for a page that is not there: none is answered late.
func TestSoakLogThatNobodyReads(t *testing.T) {
	r, log := unread(t)
	r.client.Transport = &http.Transport{DialContext: dial(r.addr), MaxIdleConnsPerHost: 64}
	r.client.Timeout = time.Second
	var wg sync.WaitGroup
	var late atomic.Int64
	tick := time.NewTicker(time.Second / 400)
	defer tick.Stop()
	for i := range 400 * 60 {
		<-tick.C
		wg.Go(func() {
			answer, err := r.client.Get("http://footfall/" + []string{"", "no-such-page"}[i%2])
			if err != nil {
				late.Add(1)
				return
			}
			answer.Body.Close()
		})
	}
	wg.Wait()
	assert.Zero(t, late.Load(), "answers after more than a second")
	t.Logf("%.0f lines were dropped", r.droppedLines(t))
	go io.Copy(io.Discard, log)
	r.stop()
	require.NoError(t, <-r.ended)
}

func TestSoakCancelledWaits(t *testing.T) { cancelWaits(t, 1000) }

// An import of a large table needs no more memory than one of a small one.
func TestSoakTakeOverMemory(t *testing.T) {
	peak := func(rows int) int64 {
		databaseURL := newDatabase(t)
		db := openTestStore(t, databaseURL).reads
		execute(t, db, originalTables)
		execute(t, db, `
			INSERT INTO visitor (ip, visits)
			SELECT '10.' || n / 65536 || '.' || n / 256 % 256 || '.' || n % 256, 1
			FROM generate_series(1, $1::int) AS n`, rows)
		cmd := command(t, []string{"migrate"}, "DATABASE_URL", databaseURL)
		output, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", output)
		kilobytes := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
		t.Logf("%d rows: %d MB at most", rows, kilobytes>>10)
		return kilobytes
	}
	assert.Less(t, peak(1_700_000), 2*peak(20_000))
}
