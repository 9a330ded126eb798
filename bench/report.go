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
func cpu(s sample) float64  { return s.ProgramCPU + s.DatabaseCPU }
func peak(s sample) float64 { return s.ResidentPeak }

func (r *results) of(cell string, value func(sample) float64) spread {
	return spreadOf(each(r.Samples[cell], value))
}

// ratio compares two cells of the same round, which met the same conditions.
func (r *results) ratio(cell, other string, value func(sample) float64) spread {
	var ratios []float64
	for i, s := range r.Samples[cell] {
		if i < len(r.Samples[other]) {
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
	const base = "_1000 uniform 64"
	big, empty := fmt.Sprintf("footfall_%d ", many), "footfall_empty "
	all := []figure{
		{"rate, of the limit's, 64 connections", r.ratio("footfall"+base, "limit"+base, rate), 2, ""},
		{"rate, of the limit's, 1,024 connections", r.ratio("footfall_1000 uniform 1024", "limit_1000 uniform 1024", rate), 2, ""},
		{"CPU a request, times the limit's", r.ratio("footfall"+base, "limit"+base, cpu), 2, ""},
		{"rate, times naive", r.ratio("footfall"+base, "naive"+base, rate), 1, ""},
		{"rate, times single", r.ratio("footfall"+base, "single"+base, rate), 1, ""},
		{"99 % of the answers at half the rate, constant arrival, 256 connections", spreadOf(each(r.Latency, func(l latency) float64 { return l.P99 })), 1, " ms"},
		{"rate with 10 million visitors stored, of an empty table's, Zipf", r.ratio(big+"zipf 64", empty+"zipf 64 empty", rate), 2, ""},
		{"the same, uniform", r.ratio(big+"uniform 64", empty+"uniform 64 empty", rate), 2, ""},
		{"resident memory, peak under full load, 64 connections", r.of("footfall"+base, peak), 1, " MiB"},
		{"ready after start, on a migrated database", spreadOf(r.ReadyMS), 0, " ms"},
		{"stripped binary", spreadOf([]float64{r.BinaryMB}), 1, " MB"},
	}
	return slices.DeleteFunc(all, func(f figure) bool { return f.got == spread{} }) // not measured
}

func (r *results) markdown(w io.Writer) {
	fmt.Fprintf(w, "# Results\n\nMade by `make bench` on %s, on a machine of %s with PostgreSQL %s and Go %s, from commit %s:\n"+
		"%d rounds of %d s a cell, load generator and PostgreSQL on the same cores. Medians with [lowest–highest].\n\n",
		r.Began.Format("2 January 2006"), r.Machine, r.Postgres, r.Go, r.Commit, r.Rounds, r.Seconds)
	fmt.Fprint(w, "## Summary\n\nWith 1,000 visitors unless another number is given; ratios compare cells of the same round.\n\n| figure | measured |\n| --- | --- |\n")
	for _, f := range r.figures() {
		fmt.Fprintf(w, "| %s | %s%s |\n", f.what, f.got.text(f.digits), f.unit)
	}
	fmt.Fprint(w, "\n## Rates\n\nCPU in µs a request. *Others*: the share of the machine that went to none of these programs while they ran.\n\n"+
		"| | visitors | connections | requests/s | footfall's, times this | program | PostgreSQL | wrk | batches/s | visits a batch | WAL, bytes a visit | page reads a visit | peak memory, MiB | others | refused |\n"+
		"| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, c := range cells() {
		samples := r.Samples[c.String()]
		if samples == nil {
			continue
		}
		median := func(digits int, value func(sample) float64) string {
			return number(spreadOf(each(samples, value)).median, digits)
		}
		visitors := number(float64(c.Visitors), 0)
		if c.Visitors == many {
			visitors += ", " + c.Distribution
		}
		switch c.State {
		case empty:
			visitors += ", none stored before"
		case checkpoint:
			visitors += ", after a checkpoint"
		}
		refused := 0
		for _, s := range samples {
			refused += s.Refused
		}
		comparison := ""
		if other := c.counterpart().String(); other != c.String() {
			comparison = r.ratio(other, c.String(), rate).text(2)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s %% | %d |\n", c.Program, visitors,
			number(float64(c.Connections), 0), spreadOf(each(samples, rate)).text(0), comparison,
			median(0, func(s sample) float64 { return s.ProgramCPU }), median(0, func(s sample) float64 { return s.DatabaseCPU }),
			median(0, func(s sample) float64 { return s.LoadCPU }), median(0, func(s sample) float64 { return s.Batches }),
			median(1, func(s sample) float64 { return s.BatchSize }),
			median(0, func(s sample) float64 { return s.WAL }), median(2, func(s sample) float64 { return s.Reads }), median(1, peak),
			median(0, func(s sample) float64 { return 100 * s.OthersCPU }), refused)
	}
	if len(r.Latency) > 0 {
		fmt.Fprint(w, "\n## Latency at half of the rate\n\n| | |\n| --- | --- |\n")
		for _, line := range []struct {
			what   string
			digits int
			value  func(latency) float64
		}{
			{"requests/s", 0, func(l latency) float64 { return l.Rate }},
			{"p50, ms", 1, func(l latency) float64 { return l.P50 }},
			{"p99, ms", 1, func(l latency) float64 { return l.P99 }},
			{"longest, ms", 0, func(l latency) float64 { return l.Longest }},
			{"over 10 ms at the client, %", 2, func(l latency) float64 { return 100 * l.SlowClient }},
			{"over 10 ms in the program, %", 2, func(l latency) float64 { return 100 * l.SlowProgram }},
			{"batches over 10 ms, %", 2, func(l latency) float64 { return 100 * l.SlowBatches }},
			{"the program waited for a core, µs a request", 0, func(l latency) float64 { return l.ProgramWaited }},
			{"PostgreSQL waited for a core, µs a request", 0, func(l latency) float64 { return l.DatabaseWaited }},
			{"CPU of vegeta, µs a request", 0, func(l latency) float64 { return l.LoadCPU }},
			{"others, %", 0, func(l latency) float64 { return 100 * l.OthersCPU }},
		} {
			fmt.Fprintf(w, "| %s | %s |\n", line.what, spreadOf(each(r.Latency, line.value)).text(line.digits))
		}
	}
	fmt.Fprint(w, "\n## The table of visitors\n\n")
	if r.BytesPerVisitor > 0 {
		fmt.Fprintf(w, "A visitor takes %.0f bytes on disk, index included. ", r.BytesPerVisitor)
	}
	var hot []string
	for _, c := range cells() {
		share, ok := r.HOT[c.Database]
		text := fmt.Sprintf("%.1f %% with %s", 100*share, number(float64(c.Visitors), 0))
		if ok && !slices.Contains(hot, text) {
			hot = append(hot, text)
		}
	}
	fmt.Fprintf(w, "Updates that stayed on their page and touched no index (HOT): %s visitors.\n", strings.Join(hot, ", "))
}

//go:embed results.svg.tmpl
var drawing string

// bar is one line of the drawing.
type bar struct {
	Y, Width, TextX     float64
	Program, Rate, Note string
}

type group struct {
	Y     float64
	Title string
	Bars  []bar
}

// svg draws the rates as bars.
func (r *results) svg(w io.Writer) error {
	const left, full = 92.0, 440.0 // where bars begin; the longest
	longest := 0.0
	for _, visitors := range []int{1, 1000, 1_000_000} {
		longest = max(longest, r.of(fmt.Sprintf("limit_%d uniform 64", visitors), rate).median)
	}
	y := 78.0
	var groups []group
	for _, visitors := range []int{1, 1000, 1_000_000} {
		g := group{Y: y, Title: number(float64(visitors), 0) + " visitors"}
		if visitors == 1 {
			g.Title = "1 visitor"
		}
		for _, program := range []string{"limit", "footfall", "naive", "single"} {
			y += 22
			s := r.of(fmt.Sprintf("%s_%d uniform 64", program, visitors), rate)
			width := full * s.median / longest
			g.Bars = append(g.Bars, bar{y, width, left + width + 6, program, number(s.median, 0),
				fmt.Sprintf("%s to %s", number(s.low, 0), number(s.high, 0))})
		}
		groups = append(groups, g)
		y += 38
	}
	return template.Must(template.New("").Parse(drawing)).Execute(w, map[string]any{
		"Height": y, "Foot": y - 12, "Groups": groups, "Machine": r.Machine,
	})
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
