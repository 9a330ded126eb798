package main

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"footfall/internal/picture"
	"footfall/internal/visitor"
)

var templates = template.Must(template.New("").
	Funcs(template.FuncMap{"asset": assetPath, "gap": gapMark}).
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
	kept              sync.Map // of []piece by greeting: a page without its values
}

// greeting selects the sentences of a page. There are some hundred different ones.
type greeting struct {
	Problem    string // why this is not the page; the rest is then of no interest
	Result     visitor.Result
	Source     visitor.Source
	NoDatabase bool
	First      bool // the visitor's first visit
	Never      bool // the visitor was never counted
}

// gaps are the places of page.html that are filled when the rest is rendered:
// {{gap "visits"}}. Those of one visitor come first, the others are a tally's.
var gaps = [...]string{
	"origin", "own visits", "own visits noun", "size", "place", "trail",
	"visitors", "visitors noun", "visits", "visits noun", "today", "today noun",
	"since", "database", "evidence", "width", "visits path", "visitors path", "words", "first day",
	"busiest x", "busiest anchor", "busiest text", "today x", "today anchor", "today text",
}

// A gap is marked by a character of Unicode's private use area, which occurs
// nowhere else on the page.
const firstMark = '\uE000'

func gapMark(name string) (string, error) {
	i := slices.Index(gaps[:], name)
	if i < 0 {
		return "", fmt.Errorf("there is no gap %q", name)
	}
	return string(rune(firstMark + i)), nil
}

// piece is a part of a page and the number of the gap behind it, or -1.
type piece struct {
	text string
	gap  int
}

// pieces returns the page with this greeting, rendered once.
func (p *page) pieces(g greeting) ([]piece, error) {
	if kept, ok := p.kept.Load(g); ok {
		return kept.([]piece), nil
	}
	whole, err := renderTemplate("page", struct {
		greeting
		Version, UserName, UserURL string
	}{g, p.version, p.userName, p.userURL})
	if err != nil {
		return nil, fmt.Errorf("render page: %w", err)
	}
	var pieces []piece
	for rest := string(whole); rest != ""; {
		text, gap := rest, -1
		if i := strings.IndexFunc(rest, isMark); i >= 0 {
			mark, size := utf8.DecodeRuneInString(rest[i:])
			text, gap, rest = rest[:i], int(mark-firstMark), rest[i+size:]
		} else {
			rest = ""
		}
		pieces = append(pieces, piece{text, gap})
	}
	p.kept.Store(g, pieces)
	return pieces, nil
}

func isMark(r rune) bool { return firstMark <= r && r < rune(firstMark+len(gaps)) }

// values fill the gaps, in their order. They go onto the page as they are: text
// that is not ours is escaped before.
type values [len(gaps)]string

func (v *values) set(name, value string) { v[slices.Index(gaps[:], name)] = value }

// count sets a number and the noun that belongs to it.
func (v *values) count(name string, n int64, noun string) {
	number := group(n)
	v.set(name, number)
	v.set(name+" noun", plural(number, noun))
}

func (v *values) label(name string, l picture.Label) {
	v.set(name+" x", strconv.Itoa(l.X))
	v.set(name+" anchor", l.Anchor)
	v.set(name+" text", l.Text)
}

// sharedPage is the page without what differs between two visitors; a batch
// makes it once.
type sharedPage struct {
	*page
	values values
}

// of returns the page for t; nil: the numbers are not known.
func (p *page) of(t *tally) *sharedPage {
	shared := &sharedPage{page: p}
	if t == nil {
		return shared
	}
	v := &shared.values
	v.count("visitors", t.visitors, "visitor")
	v.count("visits", t.visits, "visit")
	v.count("today", t.today().visits, "visit")
	v.set("since", t.since.UTC().Format("2 January 2006"))
	v.set("database", template.HTMLEscapeString(t.database))
	v.set("evidence", evidenceHTML(t))
	c := newChart(t)
	v.set("width", strconv.Itoa(c.Width))
	v.set("visits path", c.Visits)
	v.set("visitors path", c.Visitors)
	v.set("words", c.Words)
	v.set("first day", c.FirstDay)
	v.label("busiest", c.Busiest)
	v.label("today", c.Today)
	return shared
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

// evidenceHTML is what the footer says of where the numbers come from and when
// they were checked: our own words and numbers, each sentence with a space behind it.
func evidenceHTML(t *tally) (html string) {
	if text := carriedOver(t); text != "" {
		html = text + " "
	}
	for _, s := range sentences(t) {
		if s.Worry {
			html += "<strong>" + s.Text + "</strong> "
		} else {
			html += s.Text + " "
		}
	}
	return html
}

// carriedOver says what an earlier counter had counted; empty: nothing.
func carriedOver(t *tally) string {
	if t.carriedVisits == 0 {
		return ""
	}
	visits, visitors := group(t.carriedVisits), group(t.carriedVisitors)
	return fmt.Sprintf("%s %s and %s %s are carried over from an earlier counter.", visits, plural(visits, "visit"), visitors, plural(visitors, "visitor"))
}

// A trail has a stride for each visit, as many as a wide window shows.
const stride, longestTrail = 40, 40

// write answers with the page, completed for one visitor.
func (p *sharedPage) write(w http.ResponseWriter, r *http.Request, status int, g greeting, s standing) error {
	g.First, g.Never = s.place > 0, s.visits == 0
	pieces, err := p.pieces(g)
	if err != nil {
		return err
	}
	v := p.values
	v.set("origin", template.HTMLEscapeString(origin(r)))
	v.count("own visits", s.visits, "time")
	v.set("place", group(s.place))
	v.set("size", strconv.Itoa(len(group(max(s.visits, s.place)))))
	v.set("trail", strconv.Itoa(stride*int(min(s.visits, longestTrail))))
	buf := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(buf)
	buf.Reset()
	for _, piece := range pieces {
		buf.WriteString(piece.text)
		if piece.gap >= 0 {
			buf.WriteString(v[piece.gap])
		}
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if g.Result == visitor.Head {
		// A GET would be counted and see another page, so there is no
		// Content-Length that holds (RFC 9110, section 8.6).
		h.Set("Content-Type", htmlType)
		w.WriteHeader(status)
		return nil
	}
	write(w, status, htmlType, buf.Bytes())
	return nil
}

const htmlType = "text/html; charset=utf-8"

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// origin returns where the client reached this service, such as
// https://example.org. It is the client's own claim and only the client sees it.
func origin(r *http.Request) string {
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

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

// newChart draws the days since counting began.
func newChart(t *tally) picture.Chart {
	days := t.days
	for len(days) > 1 && days[0].visits == 0 && days[0].date.Before(utcDay(t.since)) {
		days = days[1:]
	}
	var total int64
	var bars []picture.Day
	for _, d := range days {
		total += d.visits
		bars = append(bars, picture.Day{Date: d.date, Visits: d.visits, Visitors: d.visitors})
	}
	number := group(total)
	return picture.NewChart(bars, number+" "+plural(number, "visit"), group)
}

//go:embed assets
var assetFiles embed.FS

// assetFile is one embedded file as it is served.
type assetFile struct {
	contentType, etag string
	body              []byte
}

// assets holds the files by their fingerprinted name, style.1a2b3c4d.css.
var assets, assetPaths = loadAssets()

func assetPath(name string) string { return assetPaths[name] }

func loadAssets() (map[string]assetFile, map[string]string) {
	files, paths := map[string]assetFile{}, map[string]string{}
	for _, file := range []struct{ name, contentType string }{
		{"favicon.svg", "image/svg+xml"},
		{"steps.svg", "image/svg+xml"},
		{"face.woff2", "font/woff2"},
		{"style.css", "text/css; charset=utf-8"}, // names the ones before it
	} {
		body, err := assetFiles.ReadFile("assets/" + file.name)
		if err != nil {
			panic(err) // the list above is wrong
		}
		for name, path := range paths {
			body = bytes.ReplaceAll(body, []byte("url("+name+")"), []byte("url("+path+")"))
		}
		sum := sha256.Sum256(body)
		print := hex.EncodeToString(sum[:4])
		ext := path.Ext(file.name)
		unique := strings.TrimSuffix(file.name, ext) + "." + print + ext
		files[unique] = assetFile{file.contentType, `"` + print + `"`, body}
		paths[file.name] = "/assets/" + unique
	}
	return files, paths
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
