package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var pageNumber = regexp.MustCompile(`You have visited this page <strong>([0-9,]+)</strong>`)

// address is the visitors' address number i.
func address(i int) string { return fmt.Sprintf("203.0.%d.%d", i/256, i%256) }

// visitPage makes a visit from address number i and returns the number that
// the page says. Any error means that the visit may or may not be counted.
func visitPage(client *http.Client, url string, i int) (int64, error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("X-Forwarded-For", address(i))
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err
	}
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("status %s", response.Status)
	}
	match := pageNumber.FindSubmatch(body)
	if match == nil {
		return 0, fmt.Errorf("no number on the page")
	}
	return strconv.ParseInt(strings.ReplaceAll(string(match[1]), ",", ""), 10, 64)
}

// ledger is what the clients know since they last compared: the numbers that
// each visitor was told, and how many visits were not confirmed.
type ledger struct {
	mu          sync.Mutex
	rows        map[int]int64 // by visitor, at the last comparison
	told        map[int]map[int64]bool
	unconfirmed map[int]int64
	twice       int64 // numbers that a visitor was told twice

	allConfirmed, allUnconfirmed int64
	last                         time.Time // when the newest confirmed visit was sent
	watched                      time.Time // by watch
	again                        time.Time // the first confirmation of a visit sent after it; zero: none yet
}

func newLedger() *ledger {
	return &ledger{rows: map[int]int64{}, told: map[int]map[int64]bool{}, unconfirmed: map[int]int64{}}
}

// note takes in what a visit that was sent at that time got.
func (l *ledger) note(visitor int, number int64, sent time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	told := l.told[visitor]
	if told == nil {
		told = map[int64]bool{}
		l.told[visitor] = told
	}
	if err != nil {
		l.unconfirmed[visitor]++
		l.allUnconfirmed++
		return
	}
	if told[number] {
		l.twice++
	}
	told[number] = true
	l.allConfirmed++
	if sent.After(l.last) {
		l.last = sent
	}
	if l.again.IsZero() && sent.After(l.watched) {
		l.again = time.Now()
	}
}

// countedSince reports whether a visit that was sent after start is confirmed.
func (l *ledger) countedSince(start time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last.After(start)
}

// watch starts the clock: something has just broken.
func (l *ledger) watch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watched, l.again = time.Now(), time.Time{}
}

// back returns how long after watch visits were confirmed again; 0: not yet.
func (l *ledger) back() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.again.IsZero() {
		return 0
	}
	return l.again.Sub(l.watched)
}

// compare holds the ledger against the visitors' rows, and begins a new one.
// No visits may come meanwhile. A visit is lost when it was confirmed and is
// not in its visitor's row; doubled is what a row has beyond all visits
// made, and a number told twice.
func (l *ledger) compare(row func(visitor int) int64) (lost, doubled int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	doubled = l.twice
	for visitor, told := range l.told {
		before, now := l.rows[visitor], row(visitor)
		confirmed := int64(len(told))
		lost += max(0, before+confirmed-now)
		doubled += max(0, now-before-confirmed-l.unconfirmed[visitor])
		for number := range told {
			if number > now {
				lost++
			}
			if number <= before {
				doubled++
			}
		}
		l.rows[visitor] = now
	}
	l.told, l.unconfirmed, l.twice = map[int]map[int64]bool{}, map[int]int64{}, 0
	return lost, doubled
}

// rowOf reads the visits of address number i.
func rowOf(t testing.TB, s *store, h hasher) func(i int) int64 {
	return func(i int) int64 {
		addr, ok := parseAddr(address(i))
		require.True(t, ok)
		return visitsOf(t, s, h.visitor(addr))
	}
}

// Four processes count for one database, and none miscounts for another.
func TestInstancesShareADatabase(t *testing.T) {
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
