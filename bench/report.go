package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
)

// spread is a median with its range.
type spread struct{ median, low, high float64 }

func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return spread{}
	}
	middle := len(sorted) / 2
	median := sorted[middle]
	if len(sorted)%2 == 0 {
		median = (sorted[middle-1] + median) / 2
	}
	return spread{median, sorted[0], sorted[len(sorted)-1]}
}

func (s spread) text(digits int) string {
	return fmt.Sprintf("%s [%s–%s]", number(s.median, digits), number(s.low, digits), number(s.high, digits))
}

// number writes 12,345 or 0.65.
func number(v float64, digits int) string {
	text := fmt.Sprintf("%.*f", digits, v)
	whole, rest, _ := strings.Cut(text, ".")
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if digits == 0 {
		return whole
	}
	return whole + "." + rest
}

func rate(s sample) float64 { return s.Rate }
func cpu(s sample) float64  { return s.ProgramCPU }
func peak(s sample) float64 { return s.ResidentPeak }

func (r *results) of(cell string, value func(sample) float64) spread {
	return spreadOf(each(r.Samples[cell], value))
}

// ratio compares two cells of the same round, which met the same conditions.
func (r *results) ratio(cell, other string, value func(sample) float64) spread {
	var ratios []float64
	for i, s := range r.Samples[cell] {
		if i < len(r.Samples[other]) && value(r.Samples[other][i]) > 0 { // else it answered nothing in time
			ratios = append(ratios, value(s)/value(r.Samples[other][i]))
		}
	}
	return spreadOf(ratios)
}

func each[T any](all []T, value func(T) float64) []float64 {
	var values []float64
	for _, v := range all {
		values = append(values, value(v))
	}
	return values
}

// figure is one line of the summary.
type figure struct {
	what   string
	got    spread
	digits int
	unit   string
}

func (r *results) figures() []figure {
	const base, crowd = " 1000 64", " 1000 1024"
	store := func(s sample) float64 { return s.StoreCPU }
	all := []figure{
		{"rate, of bare net/http's with the same bytes, 64 connections", r.ratio("footfall"+base, "nethttp"+base, rate), 2, ""},
		{"the same, 1,024 connections", r.ratio("footfall"+crowd, "nethttp"+crowd, rate), 2, ""},
		{"CPU of the program per visit, times bare net/http's, 64 connections", r.ratio("footfall"+base, "nethttp"+base, cpu), 2, ""},
		{"the same, 1,024 connections", r.ratio("footfall"+crowd, "nethttp"+crowd, cpu), 2, ""},
		{"rate, times that of commit " + before + ", 64 connections", r.ratio("footfall"+base, "earlier"+base, rate), 2, ""},
		{"the same, 1,024 connections", r.ratio("footfall"+crowd, "earlier"+crowd, rate), 2, ""},
		{"CPU of the program per visit, times that of " + before, r.ratio("footfall"+base, "earlier"+base, cpu), 2, ""},
		{"CPU of PostgreSQL per visit, times that of " + before, r.ratio("footfall"+base, "earlier"+base, store), 2, ""},
		{"rate, times Redis with AOF always, 64 connections", r.ratio("footfall"+base, "redis"+base, rate), 2, ""},
		{"the same, 1,024 connections", r.ratio("footfall"+crowd, "redis"+crowd, rate), 2, ""},
		{"rate, times SQLite (WAL, FULL)", r.ratio("footfall"+base, "sqlite"+base, rate), 1, ""},
		{"rate, times naive", r.ratio("footfall"+base, "naive"+base, rate), 1, ""},
		{"rate, times single", r.ratio("footfall"+base, "single"+base, rate), 1, ""},
		{"CPU per visit in a container with Docker's daemon, times that with the log in a file", r.ratio("docker"+base, "footfall"+base, cpu), 2, ""},
		{"99 % of the answers at half the rate, constant arrival, 256 connections", spreadOf(each(r.Latency, func(l latency) float64 { return l.P99 })), 1, " ms"},
		{"half of them", spreadOf(each(r.Latency, func(l latency) float64 { return l.P50 })), 1, " ms"},
		{"rate with a million visitors, times naive", r.ratio("million 1000000 64", "million_naive 1000000 64", rate), 0, ""},
		{"rate with a million visitors, of that with 1,000", r.ratio("million 1000000 64", "footfall"+base, rate), 2, ""},
		{"rate with 10 million visitors stored, of an empty table's", r.ratio(fmt.Sprintf("many %d 64", many), fmt.Sprintf("none %d 64", many), rate), 2, ""},
		{"bytes per visitor on disk, index included", spreadOf([]float64{r.BytesPerVisitor}), 0, ""},
		{"memory, peak at full load, 64 connections", r.of("footfall"+base, peak), 1, " MiB"},
		{"the same, 1,024 connections", r.of("footfall"+crowd, peak), 1, " MiB"},
		{"the same, 8,192 connections", r.of("footfall 1000 8192", peak), 1, " MiB"},
		{"ready after start, on a migrated database", spreadOf(r.ReadyMS), 0, " ms"},
		{"stripped binary", spreadOf([]float64{r.BinaryMB}), 1, " MB"},
	}
	return slices.DeleteFunc(all, func(f figure) bool { return f.got == spread{} }) // not measured
}

func (r *results) markdown(w io.Writer) {
	fmt.Fprintf(w, "# Results\n\nMade by `make bench` on %s, on a machine of %s with PostgreSQL %s and Go %s, from commit %s:\n"+
		"%d rounds of %d s per cell, load generator and stores on the same cores. Medians with [lowest–highest].\n\n",
		r.Began.Format("2 January 2006"), r.Machine, r.Postgres, r.Go, r.Commit, r.Rounds, r.Seconds)
	fmt.Fprint(w, "## Summary\n\nWith 1,000 visitors unless another number is given; ratios compare cells of the same round.\n\n| figure | measured |\n| --- | --- |\n")
	for _, f := range r.figures() {
		fmt.Fprintf(w, "| %s | %s%s |\n", f.what, f.got.text(f.digits), f.unit)
	}
	fmt.Fprint(w, "\n## Cells\n\nCPU in µs per visit. *Others*: the share of the machine that went to none of these programs while they ran.\n\n"+
		"| | visitors | connections | requests/s | p50, ms | p99, ms | program | store | visits per batch | WAL, bytes per visit | peak memory, MiB | bytes of an answer | others | refused |\n"+
		"| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, c := range cells() {
		samples := r.Samples[c.String()]
		if samples == nil {
			continue
		}
		median := func(digits int, value func(sample) float64) string {
			return number(spreadOf(each(samples, value)).median, digits)
		}
		refused := 0
		for _, s := range samples {
			refused += s.Refused
		}
		visitors := number(float64(c.Visitors), 0)
		if c.Database == "none" {
			visitors += ", none stored before"
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %d | %s %% | %d |\n", c.Program, visitors,
			number(float64(c.Connections), 0), spreadOf(each(samples, rate)).text(0),
			median(1, func(s sample) float64 { return s.P50 }), median(1, func(s sample) float64 { return s.P99 }),
			median(0, cpu), median(0, func(s sample) float64 { return s.StoreCPU }),
			median(1, func(s sample) float64 { return s.BatchSize }), median(0, func(s sample) float64 { return s.WAL }), median(1, peak),
			r.AnswerBytes[c.Program], median(0, func(s sample) float64 { return 100 * s.OthersCPU }), refused)
	}
}

//go:embed results.svg.tmpl
var drawing string

// bar is one line of the drawing.
type bar struct {
	Y, Width, TextX            float64
	Program, Label, Rate, Note string
}

// svg draws the rates with 64 connections as bars.
func (r *results) svg(w io.Writer) error {
	const left, full = 176.0, 400.0 // where bars begin; the longest
	y := 62.0
	var bars []bar
	labels := []struct{ program, text string }{{"nethttp", "net/http, no storage"}, {"footfall", "footfall"}, {"redis", "Redis, AOF always"},
		{"naive", "upsert + count(*)"}, {"single", "upsert + totals row"}, {"sqlite", "SQLite, WAL, FULL"}}
	longest := r.of("nethttp 1000 64", rate).median
	for _, l := range labels {
		y += 26
		s := r.of(l.program+" 1000 64", rate)
		width := full * s.median / longest
		bars = append(bars, bar{y, width, left + width + 6, l.program, l.text, number(s.median, 0), fmt.Sprintf("%s to %s", number(s.low, 0), number(s.high, 0))})
	}
	return template.Must(template.New("").Parse(drawing)).Execute(w, map[string]any{"Height": y + 50, "Foot": y + 36, "Bars": bars, "Machine": r.Machine})
}

// write prints the tables and keeps all numbers in out/; when the run was
// complete, the tables and the drawing as well.
func (r *results) write(complete bool) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join("bench", "out"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join("bench", "out", "results.json"), raw, 0o644); err != nil {
		return err
	}
	var tables, picture strings.Builder
	r.markdown(&tables)
	fmt.Print(tables.String())
	if !complete {
		return nil
	}
	if err := os.WriteFile(filepath.Join("bench", "results.md"), []byte(tables.String()), 0o644); err != nil {
		return err
	}
	if err := r.svg(&picture); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join("bench", "results.svg"), []byte(picture.String()), 0o644)
}
