package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// instance is footfall in a process of its own.
type instance struct {
	cmd    *exec.Cmd
	url    string
	exited chan error
}

// program prepares this test's binary to run as footfall; see TestMain.
func program(databaseURL, listen string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), beFootfall+"=1", "DATABASE_URL="+databaseURL, "LISTEN_ADDR="+listen)
	return cmd
}

// startInstance returns when the instance listens.
func startInstance(t testing.TB, databaseURL, listen string) *instance {
	t.Helper()
	i := &instance{cmd: program(databaseURL, listen, "serve"), exited: make(chan error, 1)}
	stdout, err := i.cmd.StdoutPipe()
	require.NoError(t, err)
	i.cmd.Stderr = os.Stderr
	require.NoError(t, i.cmd.Start())
	t.Cleanup(func() { i.cmd.Process.Kill() }) // does nothing to one that has ended
	lines := bufio.NewScanner(stdout)
	for i.url == "" && lines.Scan() {
		var line struct{ Msg, Addr string }
		require.NoError(t, json.Unmarshal(lines.Bytes(), &line))
		if line.Msg == "listening" {
			i.url = "http://" + line.Addr + "/"
		}
	}
	require.NotEmpty(t, i.url, "footfall ended before it listened")
	go func() {
		io.Copy(io.Discard, stdout) // until it ends
		i.exited <- i.cmd.Wait()
	}()
	return i
}

// stop ends the instance as an operator does.
func (i *instance) stop(t testing.TB) {
	t.Helper()
	require.NoError(t, i.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-i.exited:
		require.NoError(t, err)
	case <-time.After(30 * time.Second):
		require.Fail(t, "footfall did not end")
	}
}

// kill gives it no chance to end anything.
func (i *instance) kill(t testing.TB) {
	t.Helper()
	require.NoError(t, i.cmd.Process.Kill())
	<-i.exited
}

var pageNumber = regexp.MustCompile(`You have visited this page <strong>([0-9,]+)</strong>`)

// visitPage makes a visit from address number i and returns the number that
// the page says. Any error means that the visit may or may not be counted.
func visitPage(client *http.Client, url string, i int) (int64, error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("X-Forwarded-For", fmt.Sprintf("203.0.%d.%d", i/256, i%256))
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

// ledger is what clients know: the numbers that each visitor was told, and how
// many visits nobody confirmed.
type ledger struct {
	mu          sync.Mutex
	told        map[int]map[int64]bool
	unconfirmed map[int]int64
	confirmed   int64
	twice       int64 // numbers that one visitor was told twice
	last        time.Time
}

func newLedger() *ledger {
	return &ledger{told: map[int]map[int64]bool{}, unconfirmed: map[int]int64{}}
}

func (l *ledger) note(visitor int, number int64, sent time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.unconfirmed[visitor]++
		return
	}
	if l.told[visitor] == nil {
		l.told[visitor] = map[int64]bool{}
	}
	if l.told[visitor][number] {
		l.twice++
	}
	l.told[visitor][number] = true
	l.confirmed++
	if sent.After(l.last) {
		l.last = sent
	}
}

// countedSince tells whether a visit that was sent after start is confirmed.
func (l *ledger) countedSince(start time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last.After(start)
}

// compare holds the ledger against the rows. Nobody may visit meanwhile. A
// visit is lost when it was confirmed and does not stand in its visitor's row;
// doubled is what a row has beyond all visits made, and a number told twice.
func (l *ledger) compare(t testing.TB, s *store, h hasher) (lost, doubled int64) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	doubled = l.twice
	for visitor := range l.unconfirmed {
		if l.told[visitor] == nil {
			l.told[visitor] = map[int64]bool{}
		}
	}
	for visitor, told := range l.told {
		addr, ok := parseForwarded(fmt.Sprintf("203.0.%d.%d", visitor/256, visitor%256))
		require.True(t, ok)
		row := visitsOf(t, s, h.visitor(addr))
		confirmed := int64(len(told))
		for number := range told {
			if number > row {
				lost++
			}
		}
		lost += max(0, confirmed-row)
		doubled += max(0, row-confirmed-l.unconfirmed[visitor])
	}
	return lost, doubled
}

// keptKey returns the hasher of a database that keeps its own key.
func keptKey(t testing.TB, s *store) hasher {
	t.Helper()
	tx, err := s.reads.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	defer tx.Rollback()
	h, err := visitorKey(t.Context(), tx, nil, nil)
	require.NoError(t, err)
	return h
}

// Four processes count for one database, and none miscounts for another.
func TestInstancesShareADatabase(t *testing.T) {
	const visitors, clients, visitsEach = 1000, 32, 150
	databaseURL := newDatabase(t)
	var instances []*instance
	for range 4 {
		instances = append(instances, startInstance(t, databaseURL, "127.0.0.1:0"))
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
				number, err := visitPage(client, instances[random.IntN(len(instances))].url, visitor)
				assert.NoError(t, err)
				l.note(visitor, number, sent, err)
			}
			client.CloseIdleConnections()
		})
	}
	wg.Wait()
	s := openTestStore(t, databaseURL)
	lost, doubled := l.compare(t, s, keptKey(t, s))
	assert.Zero(t, lost)
	assert.Zero(t, doubled)
	assert.EqualValues(t, clients*visitsEach, l.confirmed)
	requireExactly(t, s, clients*visitsEach)
	output, err := program(databaseURL, "", "verify").CombinedOutput()
	assert.NoError(t, err, "%s", output)
	for _, i := range instances {
		i.stop(t)
	}
	var writers int
	scan(t, s, &writers, `SELECT count(*) FROM writers`)
	assert.Zero(t, writers)
}
