package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"footfall/internal/visitor"
	"html/template"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

var templates = template.Must(template.New("").
	Funcs(template.FuncMap{"asset": assetPath, "plural": plural}).
	ParseFS(assetFiles, "assets/page.html", "assets/badge.svg", "assets/chart.svg"))

// renderTemplate returns what a template makes of data.
func renderTemplate(name string, data any) ([]byte, error) {
	var buf bytes.Buffer
	err := templates.ExecuteTemplate(&buf, name, data)
	return buf.Bytes(), err
}

// page renders the page of one deployment.
type page struct {
	version           string
	userName, userURL string
	past              pastRows
}

// everyone is the page above and below the part about one visitor. All visitors
// of a batch see it alike.
type everyone struct {
	above, below []byte
	err          error
}

// render renders the page for t; nil: the numbers are not known.
func (p *page) render(t *tally) *everyone {
	data := struct {
		Version           string
		UserName, UserURL string
		Numbers           *numbers
	}{Version: p.version, UserName: p.userName, UserURL: p.userURL}
	if t != nil {
		past, err := p.past.render(t.days[:historyDays-1])
		if err != nil {
			return &everyone{err: err}
		}
		data.Numbers = &numbers{
			Visits: group(t.visits), Visitors: group(t.visitors),
			Since: t.since.UTC().Format("2 January 2006"), Database: t.database,
			Today: newRow(t.today()), Past: past, Chart: newChart(t.days),
			CarriedOver: carriedOver(t), Evidence: sentences(t),
		}
	}
	above, err := renderTemplate("above", data)
	below, belowErr := renderTemplate("below", data)
	return &everyone{above, below, errors.Join(err, belowErr)}
}

// numbers are what the page shows of a tally, ready to be read.
type numbers struct {
	Visits, Visitors string
	Since, Database  string
	Today            row
	Past             template.HTML // the table's rows for the days before today
	Chart            chart
	CarriedOver      string // empty: nothing
	Evidence         []sentence
}

// sentence is one about the evidence; Worry: it should catch a reader's eye.
type sentence struct {
	Text  string
	Worry bool
}

// How many days old a check may be: a recount is due every night, the restore of
// a backup every week.
var checkDays = map[string]int{"recount": 2, "restore": 9}

// newSentence words a check for a reader on date. What did not agree, or is older
// than it should be, is a worry.
func newSentence(e evidence, date time.Time) sentence {
	text := "The numbers were last recounted"
	if e.Kind == "restore" {
		text = "A backup was last restored"
	}
	text += " on " + e.At.UTC().Format("2 January 2006")
	switch {
	case !e.Agreed:
		return sentence{text + " and did not agree.", true}
	case date.Sub(utcDay(e.At)) > time.Duration(checkDays[e.Kind])*24*time.Hour:
		return sentence{text + " and agreed; the next time is overdue.", true}
	}
	return sentence{text + " and agreed.", false}
}

func sentences(t *tally) (all []sentence) {
	for _, e := range t.evidence {
		all = append(all, newSentence(e, t.today().date))
	}
	return all
}

// carriedOver says what an earlier counter had counted; empty: nothing.
func carriedOver(t *tally) string {
	if t.carriedVisits == 0 {
		return ""
	}
	visits, visitors := group(t.carriedVisits), group(t.carriedVisitors)
	return fmt.Sprintf("%s %s and %s %s are carried over from an earlier counter.", visits, plural(visits, "visit"), visitors, plural(visitors, "visitor"))
}

// row is one day, ready to be read.
type row struct{ Day, Visits, Visitors, New string }

func newRow(d day) row {
	return row{d.date.Format("2 Jan"), group(d.visits), group(d.visitors), group(d.newVisitors)}
}

// pastRows keeps the rendered rows of the days before today, which hardly ever
// change: they are four fifths of what there is to render.
type pastRows struct {
	mu   sync.Mutex
	days []day
	html template.HTML
}

func (p *pastRows) render(days []day) (template.HTML, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Equal(p.days, days) {
		return p.html, nil
	}
	var rows []row
	for _, d := range days {
		rows = append(rows, newRow(d))
	}
	html, err := renderTemplate("rows", rows)
	if err != nil {
		return "", err
	}
	p.days, p.html = days, template.HTML(html) // the template has escaped it
	return p.html, nil
}

// you is what the page says to one visitor, but for the number.
type you struct {
	Problem    string // why this is not the page; the rest is then of no interest
	Result     visitor.Result
	Source     visitor.Source
	NoDatabase bool
	Digits     int // the length of the number with its commas
	Once       bool
	Never      bool
	Trail      int // width of the visitor's trail; 0: there is none
}

// A trail has a stride for each visit, as many as a wide window shows.
const stride, longestTrail = 40, 40

// youParts keeps the part about a visitor, rendered, in two: before and after
// the number. There are only as many as there are different yous: hundreds.
var youParts sync.Map // of [2][]byte by you

// numberMark marks the place of the number while youParts are made: a character of
// Unicode's private use area, which occurs nowhere else on the page.
const numberMark = "\uE000"

// renderYou returns what comes before and after the visitor's number; without a
// number all of it is before.
func renderYou(y you) (before, after []byte, err error) {
	if parts, ok := youParts.Load(y); ok {
		parts := parts.([2][]byte)
		return parts[0], parts[1], nil
	}
	whole, err := renderTemplate("you", struct {
		you
		Number string
	}{y, numberMark})
	if err != nil {
		return nil, nil, err
	}
	before, after, _ = bytes.Cut(whole, []byte(numberMark))
	youParts.Store(y, [2][]byte{before, after})
	return before, after, nil
}

// write answers with the page, completed for one visitor.
func (p *everyone) write(w http.ResponseWriter, status int, y you, visits int64) error {
	number := group(visits)
	y.Digits, y.Once, y.Never = len(number), visits == 1, visits == 0
	y.Trail = stride * int(min(visits, longestTrail))
	before, after, err := renderYou(y)
	if err := errors.Join(p.err, err); err != nil {
		return fmt.Errorf("render page: %w", err)
	}
	buf := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(buf)
	buf.Reset()
	buf.Write(p.above)
	buf.Write(before)
	if len(after) > 0 {
		buf.WriteString(number) // digits and commas: nothing to escape
	}
	buf.Write(after)
	buf.Write(p.below)
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if y.Result == visitor.Head {
		// A GET would be counted and see another page, so there is no
		// Content-Length that holds (RFC 9110, section 8.6).
		h.Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(status)
		return nil
	}
	write(w, status, "text/html; charset=utf-8", buf.Bytes())
	return nil
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

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
// of the window, so all text is outside of them.
type chart struct {
	FirstDay        row
	Max             row    // the first day with the most visits
	TotalVisits     string // of all its days
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

func newChart(days []day) chart {
	last, highest := len(days)-1, 0
	var sum int64
	for i, d := range days {
		sum += d.visits
		if d.visits > days[highest].visits {
			highest = i
		}
	}
	c := chart{
		FirstDay: newRow(days[0]), Max: newRow(days[highest]), MaxToday: highest == last, TotalVisits: group(sum),
		Width: last*barStep + barWidth, Height: chartHeight,
	}
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
			height := max(1, int(float64(d.visits)/float64(days[highest].visits)*chartHeight))
			path = fmt.Appendf(path, "M%d %dv-%dh%dv%dz", i*barStep, chartHeight, height, barWidth, height)
		}
	}
	c.TodayPath = string(path)
	return c
}

//go:embed assets
var assetFiles embed.FS

// assetFile is one embedded file as it is served.
type assetFile struct {
	contentType  string
	etag         string // weak: plain and small are one to it (RFC 9110, section 8.8.1)
	plain, small []byte // small is gzip
}

// assets holds the files by their fingerprinted name, style.1a2b3c4d.css.
var assets, assetPaths = loadAssets()

func assetPath(name string) string { return assetPaths[name] }

func loadAssets() (map[string]assetFile, map[string]string) {
	files, paths := map[string]assetFile{}, map[string]string{}
	for _, name := range []string{"style.css", "favicon.svg"} {
		plain, err := fs.ReadFile(assetFiles, "assets/"+name)
		if err != nil {
			panic(err) // the list above is wrong
		}
		var small bytes.Buffer
		z, _ := gzip.NewWriterLevel(&small, gzip.BestCompression) // the level is a valid one
		z.Write(plain)                                            // into memory
		z.Close()
		sum := sha256.Sum256(plain)
		print := hex.EncodeToString(sum[:4])
		ext := path.Ext(name)
		unique := strings.TrimSuffix(name, ext) + "." + print + ext
		files[unique] = assetFile{mime.TypeByExtension(ext), `W/"` + print + `"`, plain, small.Bytes()}
		paths[name] = "/assets/" + unique
	}
	return files, paths
}

func asset(w http.ResponseWriter, r *http.Request) error {
	file, ok := assets[r.PathValue("file")]
	if !ok {
		return errNotFound
	}
	h := w.Header()
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Content-Type", file.contentType)
	h.Set("ETag", file.etag)
	h.Set("Vary", "Accept-Encoding")
	body := file.plain
	if acceptsGzip(r.Header.Get("Accept-Encoding")) {
		h.Set("Content-Encoding", "gzip")
		body = file.small
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body)) // answers If-None-Match
	return nil
}

// acceptsGzip reads an Accept-Encoding header (RFC 9110, section 12.5.3).
func acceptsGzip(header string) bool {
	for coding := range strings.SplitSeq(header, ",") {
		name, weight, _ := strings.Cut(coding, ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") {
			value := strings.TrimPrefix(strings.TrimSpace(weight), "q=")
			return weight == "" || strings.Trim(value, "0.") != "" // q=0, q=0.000: refused
		}
	}
	return false
}

// write sends an answer that is complete in memory. An error here means that
// the client has left.
func write(w http.ResponseWriter, status int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}
