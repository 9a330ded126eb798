//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// A load is a number of clients with kept-alive connections that ask for a page over and over.
// Every fourth request is a POST: no proxy may repeat one, so it shows what a retry would hide.
type load struct {
	stop   context.CancelFunc
	wg     sync.WaitGroup
	begin  time.Time
	mu     sync.Mutex
	result loadResult
	good   time.Time // of the last GET answered 200
}

type loadResult struct {
	Requests int            // all
	Counted  int            // GETs answered 200: visits the service must have counted
	Failed   int            // all without the wanted answer
	Reasons  map[string]int // what they got instead, and how often
	From, To time.Time      // when the first of them began and the last was answered, to be looked up in the play's log
	Slowest  time.Duration
	Away     time.Duration // the longest time between two GETs that were answered 200
	Took     time.Duration
}

// failedGETs is how many of the failed requests were visits.
func (r loadResult) failedGETs() (n int) {
	for reason, times := range r.Reasons {
		if strings.HasPrefix(reason, http.MethodGet) {
			n += times
		}
	}
	return n
}

func (r loadResult) String() string {
	return fmt.Sprintf("%d requests, %d failed %v from %s to %s, slowest %s, in %.1f s", r.Requests, r.Failed, r.Reasons,
		r.From.Format(time.TimeOnly), r.To.Format(time.TimeOnly), r.Slowest.Round(time.Millisecond), r.Took.Seconds())
}

// startLoad begins asking for url with so many clients, each waiting pause between two requests.
// A GET has to be answered 200 and a POST 405, by the service itself (Allow names GET).
// It ends by finish, or with the test.
func startLoad(t *testing.T, url string, clients int, pause time.Duration) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{stop: cancel, begin: time.Now(), good: time.Now(), result: loadResult{Reasons: map[string]int{}}}
	for range clients {
		l.wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}, Timeout: 10 * time.Second,
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			defer client.CloseIdleConnections()
			tick := time.NewTicker(max(pause, time.Microsecond))
			defer tick.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				method := http.MethodGet
				if i%4 == 3 {
					method = http.MethodPost
				}
				l.one(ctx, client, method, url)
				select {
				case <-ctx.Done():
				case <-tick.C:
				}
			}
		})
	}
	t.Cleanup(func() { l.finish() })
	return l
}

// one makes one request. The load's end does not cut it off: a request that was sent is answered.
func (l *load) one(ctx context.Context, client *http.Client, method, url string) {
	begin := time.Now()
	reason := ""
	req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), method, url, nil)
	if err == nil {
		var resp *http.Response
		if resp, err = client.Do(req); err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			allowed := resp.StatusCode == http.StatusMethodNotAllowed && strings.Contains(resp.Header.Get("Allow"), "GET")
			if method == http.MethodGet && resp.StatusCode != http.StatusOK || method == http.MethodPost && !allowed {
				reason = fmt.Sprintf("%s %d", method, resp.StatusCode)
			}
		}
	}
	if err != nil {
		// Without the connection's addresses, which differ each time.
		text := err.Error()
		reason = method + " " + text[strings.LastIndex(text, ": ")+1:]
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.Requests++
	l.result.Slowest = max(l.result.Slowest, time.Since(begin))
	switch {
	case reason != "":
		if l.result.Failed == 0 {
			l.result.From = begin
		}
		l.result.To = time.Now()
		l.result.Failed++
		l.result.Reasons[reason]++
	case method == http.MethodGet:
		l.result.Counted++
		l.result.Away = max(l.result.Away, time.Since(l.good))
		l.good = time.Now()
	}
}

// sent is the number of requests answered so far.
func (l *load) sent() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.result.Requests
}

// finish ends the load and says what became of it.
func (l *load) finish() loadResult {
	l.stop()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.result.Took == 0 {
		l.result.Took = time.Since(l.begin)
	}
	return l.result
}
