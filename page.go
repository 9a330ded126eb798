package main

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// shared is the page of a batch, rendered by the first who needs it.
type shared struct {
	once sync.Once
	page *everyone
}

func (sh *shared) get(s *server, t *tally) *everyone {
	sh.once.Do(func() { sh.page = s.renderEveryone(t) })
	return sh.page
}

//go:embed assets/page.html assets/style.css assets/favicon.svg assets/badge.svg
var assetFiles embed.FS

var templates = template.Must(template.New("").
	Funcs(template.FuncMap{"asset": assetPath, "plural": plural}).
	ParseFS(assetFiles, "assets/page.html", "assets/badge.svg"))

// everyone is what all visitors of one batch see alike: the page above and
// below the part that is about one of them. Rendering it takes longer than
// everything else about a request.
type everyone struct {
	above, below []byte
	err          error
}

// you is what the page says to one visitor.
type you struct {
	Result     result
	Source     source
	NoDatabase bool
	number     int64
}

func (y you) Number() string { return group(y.number) }
func (y you) Once() bool     { return y.number == 1 }
func (y you) Never() bool    { return y.number == 0 }

// Trail is the width of the visitor's trail: a stride for each visit, as many
// as a wide window shows. 0: there is none.
func (y you) Trail() int64 {
	const stride, most = 40, 40
	return stride * min(y.number, most)
}

// renderEveryone renders the page for t; nil: the numbers are not to be had.
func (s *server) renderEveryone(t *tally) *everyone {
	data := struct {
		*tally
		Build             build
		UserName, UserURL string
		Chart             *chart
	}{tally: t, Build: s.build, UserName: s.cfg.UserName, UserURL: s.cfg.UserURL}
	if t != nil {
		data.Chart = newChart(t.days)
	}
	var above, below bytes.Buffer
	err := errors.Join(
		templates.ExecuteTemplate(&above, "above", data),
		templates.ExecuteTemplate(&below, "below", data))
	return &everyone{above.Bytes(), below.Bytes(), err}
}

// write answers with the page, completed for one visitor.
func (p *everyone) write(w http.ResponseWriter, status int, y you) error {
	if p.err != nil {
		return fmt.Errorf("render page: %w", p.err)
	}
	buf := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(buf)
	buf.Reset()
	buf.Write(p.above)
	if err := templates.ExecuteTemplate(buf, "you", y); err != nil {
		return fmt.Errorf("render page: %w", err)
	}
	buf.Write(p.below)
	w.Header().Set("Cache-Control", "no-store")
	write(w, status, "text/html; charset=utf-8", buf.Bytes())
	return nil
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// Methods of tally for the page.

func (t *tally) Visits() string   { return group(t.visits) }
func (t *tally) Visitors() string { return group(t.visitors) }
func (t *tally) Today() day       { return t.today() }
func (t *tally) Since() string    { return t.since.UTC().Format("2 January 2006") }
func (t *tally) Database() string { return t.database }

func (d day) Visits() string      { return group(d.visits) }
func (d day) Visitors() string    { return group(d.visitors) }
func (d day) NewVisitors() string { return group(d.newVisitors) }
func (d day) Date() string        { return d.date.Format(time.DateOnly) }
func (d day) Short() string       { return d.date.Format("2 Jan") }

// group writes n with a comma between thousands.
func group(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// plural returns the noun for the number that group wrote.
func plural(number, noun string) string {
	if number == "1" {
		return noun
	}
	return noun + "s"
}

// chart is the days' visits as bars. Their shapes are stretched to the width
// of the window, so all that is text stands outside of them.
type chart struct {
	Days            []day // oldest first
	Max             day   // the first day with the most visits
	FirstDay        day
	LastDay         day // today
	TotalVisits     string
	Width, Height   int    // of the view box that the paths are drawn in
	Path, TodayPath string // the days before today; today. A day without visits has no shape
	MaxX            int    // where the label of Max points to, in percent of the width
	MaxAnchor       string // the text-anchor that keeps this label inside
	MaxToday        bool
}

const (
	barStep     = 10 // from one bar's left edge to the next one's
	barWidth    = 8
	chartHeight = 100 // of the highest bar
)

func newChart(days []day) *chart {
	last := len(days) - 1
	c := &chart{Days: days, FirstDay: days[0], LastDay: days[last], Width: last*barStep + barWidth, Height: chartHeight}
	var sum int64
	highest := 0
	for i, d := range days {
		sum += d.visits
		if d.visits > days[highest].visits {
			highest = i
		}
	}
	c.Max, c.MaxToday, c.TotalVisits = days[highest], highest == last, group(sum)
	c.MaxX, c.MaxAnchor = 100*highest*barStep/c.Width, "start"
	if highest > last/2 {
		c.MaxX, c.MaxAnchor = 100*(highest*barStep+barWidth)/c.Width, "end"
	}
	var path []byte
	for i, d := range days {
		if i == last {
			c.Path, path = string(path), nil
		}
		if d.visits > 0 { // a day with one visit among busy ones is still to be seen
			height := max(1, int(float64(d.visits)/float64(c.Max.visits)*chartHeight))
			path = fmt.Appendf(path, "M%d %dv-%dh%dv%dz", i*barStep, chartHeight, height, barWidth, height)
		}
	}
	c.TodayPath = string(path)
	return c
}
