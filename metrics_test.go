package main

import (
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// metric returns the value of one line of /metrics, "" when it is not there.
func metric(text, series string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	s := newTestServer(t, url)
	first := s.ask("GET", "/metrics").Body.String()
	for _, result := range []string{"counted", "bot", "prefetch", "head", "no_address", "unavailable", "unconfirmed"} {
		assert.Equal(t, "0", metric(first, `footfall_visits_total{result="`+result+`"}`), "there from the start")
	}
	// A gauge that begins at 0 would draw a fall to 0 at each deployment.
	assert.NotContains(t, first, "footfall_visits ", "not known yet")
	assert.NotContains(t, first, "footfall_visitors ", "not known yet")

	s.ask("GET", "/", "User-Agent", `agent-of-client"`)
	s.ask("GET", "/?query-of-client", "Peer", "127.0.0.1:1", "X-Forwarded-For", "198.51.100.7")
	s.ask("GET", "/", "Peer", "127.0.0.1:1", "X-Forwarded-For", "10.0.0.9")
	s.ask("GET", "/", "Peer", "127.0.0.1:1", "X-Forwarded-For", "of-client")
	s.ask("GET", "/", "User-Agent", "Googlebot/2.1")
	s.ask("GET", "/", "Sec-Purpose", "prefetch")
	s.ask("HEAD", "/")
	s.ask("GET", "/", "Peer", "@")
	s.ask("GET", "/path-of-client")
	s.ask("METHOD-OF-CLIENT", "/")
	s.ask("GET", "/readyz")
	s.ask("GET", assetPath("style.css"))
	unlock := holdLock(t, openTestStore(t, url), `LOCK TABLE totals`)
	assert.Equal(t, http.StatusServiceUnavailable, s.ask("GET", "/").Code)
	unlock()

	w := s.ask("GET", "/metrics")
	text := w.Body.String()
	b := thisBuild()
	for series, want := range map[string]string{
		`footfall_build_info{version="` + b.Version + `",commit="` + b.Commit + `",goversion="` + b.Go + `"}`: "1",
		`footfall_visits_total{result="counted"}`:                                                             "4",
		`footfall_visits_total{result="bot"}`:                                                                 "1",
		`footfall_visits_total{result="prefetch"}`:                                                            "1",
		`footfall_visits_total{result="head"}`:                                                                "1",
		`footfall_visits_total{result="no_address"}`:                                                          "1",
		`footfall_visits_total{result="unavailable"}`:                                                         "0",
		`footfall_visits_total{result="unconfirmed"}`:                                                         "1",
		`footfall_visits`:   "4",
		`footfall_visitors`: "4",
		`footfall_ready`:    "1",
		`footfall_http_requests_total{route="/",status="200"}`:               "8",
		`footfall_http_requests_total{route="/",status="503"}`:               "1",
		`footfall_http_requests_total{route="other",status="404"}`:           "1",
		`footfall_http_requests_total{route="other",status="405"}`:           "1",
		`footfall_http_requests_total{route="/assets/{file}",status="200"}`:  "1",
		`footfall_http_request_duration_seconds_count{route="/"}`:            "9",
		`footfall_http_request_duration_seconds_bucket{route="/",le="+Inf"}`: "9",
		`footfall_client_address_total{source="forwarded",scope="public"}`:   "1",
		`footfall_client_address_total{source="forwarded",scope="private"}`:  "1",
		`footfall_client_address_total{source="peer",scope="private"}`:       "1",
		`footfall_batches_total{result="committed"}`:                         "4",
		`footfall_batches_total{result="abandoned"}`:                         "1",
		`footfall_batch_duration_seconds_count`:                              "4",
	} {
		assert.Equal(t, want, metric(text, series), series)
	}
	for _, series := range []string{
		`footfall_database_connections{state="open"}`, `footfall_database_connections{state="idle"}`,
		`go_goroutines`, `process_resident_memory_bytes`, `process_start_time_seconds`, `process_cpu_seconds_total`,
	} {
		assert.NotContains(t, []string{"", "0"}, metric(text, series), series)
	}
	requireValidMetrics(t, text)

	// What a client can choose is in no label.
	for _, secret := range []string{"of-client", "OF-CLIENT", "198.51.100.7", "10.0.0.9", "192.0.2.1"} {
		assert.NotContains(t, text, secret)
	}
	var names []string
	for _, match := range regexp.MustCompile(`[{,]([a-z]+)="`).FindAllStringSubmatch(text, -1) {
		names = append(names, match[1])
	}
	slices.Sort(names)
	assert.Equal(t, []string{"commit", "goversion", "le", "result", "route", "scope", "source", "state", "status", "version"}, slices.Compact(names))
}

// requireValidMetrics has Prometheus' own tool read the text and judge the names.
func requireValidMetrics(t testing.TB, text string) {
	t.Helper()
	check := exec.CommandContext(t.Context(), "promtool", "check", "metrics")
	check.Stdin = strings.NewReader(text)
	output, err := check.CombinedOutput()
	require.NoError(t, err, "promtool, of Debian's package prometheus: %s", output)
	assert.Empty(t, string(output))
}

func TestHistogram(t *testing.T) {
	t.Parallel()
	var h histogram
	for _, took := range []time.Duration{0, 500 * time.Microsecond, 501 * time.Microsecond, time.Second, 5 * time.Second, time.Hour} {
		h.observe(took)
	}
	assert.Equal(t, uint64(6), h.count)
	assert.InDelta(t, 3606.001001, h.sum, 1e-9)
	assert.Equal(t, uint64(2), h.buckets[0], "a bound belongs to its bucket")
	assert.Equal(t, uint64(1), h.buckets[1])
	assert.Equal(t, uint64(1), h.buckets[len(bounds)], "beyond the last bound")
}

func TestLabelsAreEscaped(t *testing.T) {
	t.Parallel()
	assert.Equal(t, `{a="1\"2\\3\n4",b=""}`, labels("a", "1\"2\\3\n4", "b", ""))
}
