package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"footfall/internal/visitor"
)

// metrics are this process's own numbers, in Prometheus' text format
// (https://prometheus.io/docs/instrumenting/exposition_formats/). No label
// takes a value that a client can choose.
type metrics struct {
	mu        sync.Mutex
	requests  map[[2]string]uint64 // by route, status
	durations map[string]*histogram
	visits    map[visitor.Result]uint64
	clients   map[[2]string]uint64 // by source, scope
	batches   map[string]uint64    // by result
	commits   histogram
	seen      bool  // the totals are known
	visitsNow int64 // the newest totals
	visitors  int64
	isReady   bool

	droppedLines atomic.Uint64 // of the log
}

func newMetrics() *metrics {
	m := &metrics{
		requests:  map[[2]string]uint64{},
		durations: map[string]*histogram{},
		clients:   map[[2]string]uint64{},
		// They start at 0, so that rate() sees the first increment.
		visits:  map[visitor.Result]uint64{visitor.Counted: 0, visitor.Bot: 0, visitor.Embedded: 0, visitor.Head: 0, visitor.Ignored: 0, visitor.NoAddress: 0, visitor.Prefetch: 0, visitor.Unavailable: 0, visitor.Unconfirmed: 0},
		batches: map[string]uint64{"committed": 0, "retried": 0, "abandoned": 0},
	}
	return m
}

// bounds are the upper ends of the histograms' buckets in seconds.
var bounds = [...]float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5}

type histogram struct {
	buckets [len(bounds) + 1]uint64 // not yet cumulated; the last is +Inf
	sum     float64
	count   uint64
}

func (h *histogram) observe(d time.Duration) {
	v := d.Seconds()
	i, _ := slices.BinarySearch(bounds[:], v)
	h.buckets[i]++
	h.sum += v
	h.count++
}

func (m *metrics) request(route string, status int, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests[[2]string{route, statusText(status)}]++
	h := m.durations[route]
	if h == nil {
		h = &histogram{}
		m.durations[route] = h
	}
	h.observe(took)
}

// statusText spares the usual case an allocation.
func statusText(status int) string {
	if status == 200 {
		return "200"
	}
	return strconv.Itoa(status)
}

// visit notes a request for the page, and where its client's address came from.
func (m *metrics) visit(client visitor.Client, r visitor.Result) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.visits[r]++
	if client.Source != visitor.FromNobody {
		m.clients[[2]string{string(client.Source), client.Scope()}]++
	}
}

// batch notes a batch that ended: committed, or given up.
func (m *metrics) batch(took time.Duration, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !ok {
		m.batches["abandoned"]++
		return
	}
	m.batches["committed"]++
	m.commits.observe(took)
}

func (m *metrics) retried() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.batches["retried"]++
}

// saw notes the newest totals. They only grow, and may be seen out of order.
func (m *metrics) saw(visits, visitors int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = true
	m.visitsNow, m.visitors = max(m.visitsNow, visits), max(m.visitors, visitors)
}

func (m *metrics) ready(ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.isReady = ok
}

var processStart = time.Now()

// writeTo writes everything.
func (m *metrics) writeTo(p printer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p.family("footfall_http_requests_total", "counter", "Answered requests.")
	for _, key := range sortedKeys(m.requests) {
		p.value("footfall_http_requests_total", labels("route", key[0], "status", key[1]), float64(m.requests[key]))
	}
	p.family("footfall_http_request_duration_seconds", "histogram", "From the request's arrival to the end of its answer.")
	for _, route := range slices.Sorted(maps.Keys(m.durations)) {
		p.histogram("footfall_http_request_duration_seconds", m.durations[route], "route", route)
	}
	p.family("footfall_visits_total", "counter", "Visits of the page by what became of them in this process.")
	for _, r := range slices.Sorted(maps.Keys(m.visits)) {
		p.value("footfall_visits_total", labels("result", string(r)), float64(m.visits[r]))
	}
	if m.seen {
		p.single("footfall_all_visits", "gauge", "All visits ever, when this process last saw the totals.", float64(m.visitsNow))
		p.single("footfall_all_visitors", "gauge", "All visitors ever, when this process last saw the totals.", float64(m.visitors))
	}
	p.family("footfall_client_address_total", "counter", "Visits by where the client's address came from and whether it is a private one.")
	for _, key := range sortedKeys(m.clients) {
		p.value("footfall_client_address_total", labels("source", key[0], "scope", key[1]), float64(m.clients[key]))
	}
	p.family("footfall_batches_total", "counter", "Batches of visits by what became of them; retried counts tries.")
	for _, r := range slices.Sorted(maps.Keys(m.batches)) {
		p.value("footfall_batches_total", labels("result", r), float64(m.batches[r]))
	}
	p.family("footfall_batch_duration_seconds", "histogram", "From a batch's sending to its confirmation by the database.")
	p.histogram("footfall_batch_duration_seconds", &m.commits)
	p.single("footfall_log_lines_dropped_total", "counter", "Lines of the log that nobody read.", float64(m.droppedLines.Load()))
	p.single("footfall_ready", "gauge", "The last answer of /readyz: 1 ready, 0 not.", boolean(m.isReady))

	p.single("go_goroutines", "gauge", "Goroutines that exist.", float64(runtime.NumGoroutine()))
	p.single("process_start_time_seconds", "gauge", "When this process started, in Unix time.", float64(processStart.UnixMilli())/1000)
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err == nil {
		p.single("process_cpu_seconds_total", "counter", "User and system time spent.", (time.Duration(usage.Utime.Nano()) + time.Duration(usage.Stime.Nano())).Seconds())
	}
	if bytes, ok := residentBytes(); ok {
		p.single("process_resident_memory_bytes", "gauge", "Resident memory.", float64(bytes))
	}
}

// residentBytes reads the second field of /proc/self/statm, resident pages
// (proc(5)); false where there is no such file.
func residentBytes() (int, bool) {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 2 {
		return 0, false
	}
	pages, err := strconv.Atoi(fields[1])
	return pages * os.Getpagesize(), err == nil
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// sortedKeys gives one scrape the order of the next.
func sortedKeys(m map[[2]string]uint64) [][2]string {
	return slices.SortedFunc(maps.Keys(m), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
}

// labels writes {name="value",…}.
func labels(pairs ...string) string {
	var parts []string
	for pair := range slices.Chunk(pairs, 2) {
		// %q escapes what the format requires: quotes, backslashes, newlines.
		parts = append(parts, fmt.Sprintf("%s=%q", pair[0], pair[1]))
	}
	return "{" + strings.Join(parts, ",") + "}"
}

type printer struct{ buf *bytes.Buffer }

func (p printer) family(name, kind, help string) {
	fmt.Fprintf(p.buf, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (p printer) value(name, labels string, v float64) {
	fmt.Fprintf(p.buf, "%s%s %s\n", name, labels, strconv.FormatFloat(v, 'g', -1, 64))
}

// single writes a family of one value.
func (p printer) single(name, kind, help string, v float64) {
	p.family(name, kind, help)
	p.value(name, "", v)
}

func (p printer) histogram(name string, h *histogram, pairs ...string) {
	var sum uint64
	for i, n := range h.buckets {
		sum += n
		le := "+Inf"
		if i < len(bounds) {
			le = strconv.FormatFloat(bounds[i], 'g', -1, 64)
		}
		p.value(name+"_bucket", labels(append(slices.Clone(pairs), "le", le)...), float64(sum))
	}
	bare := ""
	if len(pairs) > 0 {
		bare = labels(pairs...)
	}
	p.value(name+"_sum", bare, h.sum)
	p.value(name+"_count", bare, float64(h.count))
}
