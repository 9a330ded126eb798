//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"footfall/internal/devdb"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testBrowser opens the page through nginx in a real browser.
func testBrowser(t *testing.T, s *service) {
	require.NoError(t, install("chromium=chromium"))

	t.Run("the numbers are the database's", func(t *testing.T) {
		netLog := filepath.Join(t.TempDir(), "net.json")
		dom, log := chromium(t, s.edge().ip, "--dump-dom", "--log-net-log="+netLog, s.url("/"))
		number := digits(t, dom, `You have visited this page <strong>(.*?)</strong>`)
		assert.Equal(t, "t", s.sql(t, "SELECT EXISTS (SELECT FROM visitors WHERE visits = "+number+")"), "no visitor has %s visits", number)
		assert.Equal(t, s.sql(t, "SELECT visitors, visits FROM totals"),
			digits(t, dom, `<b>([^<]*)</b> visitors?\s*</li>`)+"|"+digits(t, dom, `<b>([^<]*)</b> visits?\s*</li>`))
		assert.Contains(t, dom, "footfall "+s.version)

		// A violation of the content security policy is a line on the console as well.
		assert.NotContains(t, log, "CONSOLE")
		requests, err := os.ReadFile(netLog)
		require.NoError(t, err)
		own := 0
		// The browser asks its maker for this and that; what the page asks for carries the page's key.
		page := strings.TrimSuffix(s.url("/"), "/")
		ofPage := regexp.MustCompile(`"network_isolation_key":"` + regexp.QuoteMeta(page) + ` [^\n]*"url":"([^"]*)"`)
		for _, m := range ofPage.FindAllStringSubmatch(string(requests), -1) {
			assert.True(t, strings.HasPrefix(m[1], page+"/"), "a request to %s", m[1])
			own++
		}
		assert.GreaterOrEqual(t, own, 2, "page and style sheet")
	})

	t.Run("this test sees a violation", func(t *testing.T) {
		// A page whose policy forbids its own style.
		page := filepath.Join(t.TempDir(), "page.html")
		require.NoError(t, os.WriteFile(page, []byte(`<meta http-equiv="Content-Security-Policy" content="style-src 'none'"><style>p{}</style>`), 0o644))
		_, log := chromium(t, s.edge().ip, "--dump-dom", "file://"+page)
		assert.Contains(t, log, "CONSOLE")
	})

	t.Run("another page shows badge, chart and icon", func(t *testing.T) {
		visits := s.sql(t, "SELECT visits FROM totals")
		var pictures string
		for _, path := range []string{"/badge.svg", "/badge.svg?show=visits", "/badge.svg?show=today", "/chart.svg", "/card.png", "/favicon.ico"} {
			pictures += `<img src="` + s.url(path) + `">`
		}
		// A picture that the browser does not show is 0 wide.
		page := filepath.Join(t.TempDir(), "page.html")
		require.NoError(t, os.WriteFile(page, []byte("<!doctype html>"+pictures+
			`<p id=widths><script>onload = () => widths.textContent = [...document.images].map(i => i.naturalWidth).join(" ")</script>`), 0o644))
		dom, _ := chromium(t, s.edge().ip, "--dump-dom", "file://"+page)
		assert.Regexp(t, `<p id="widths">([1-9]\d{1,2} ){3}600 1200 32<`, dom)

		dom, log := chromium(t, s.edge().ip, "--dump-dom", s.url("/nowhere"))
		assert.Contains(t, dom, "Page not found.")
		assert.NotContains(t, log, "Content Security Policy")
		assert.Equal(t, visits, s.sql(t, "SELECT visits FROM totals"), "none of this counts")
	})

	for name, args := range map[string][]string{
		"wide":   {"--window-size=1280,900"},
		"narrow": {"--window-size=500,900"}, // the narrowest that headless Chromium makes
		"dark":   {"--window-size=1280,900", "--blink-settings=preferredColorScheme=0"},
	} {
		file := filepath.Join(outDir(), "page-"+name+".png")
		chromium(t, s.edge().ip, append(args, "--hide-scrollbars", "--screenshot="+file, s.url("/"))...)
		assert.FileExists(t, file)
	}
}

// chromium runs the browser once, which reaches host and nothing else, and returns what it
// printed and what it logged.
func chromium(t *testing.T, host string, args ...string) (out, log string) {
	t.Helper()
	// Without TLS the browser remarks on its console that it ignores a header which only counts with TLS.
	cmd := exec.CommandContext(t.Context(), "chromium", append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
		"--user-data-dir=" + t.TempDir(), "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE " + host,
		"--unsafely-treat-insecure-origin-as-secure=http://" + host, "--disable-background-networking", "--disable-component-update",
		"--user-agent=Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0.0.0 Safari/537.36", // headless Chromium says that it is a program
		"--disable-sync", "--disable-quic", "--disable-default-apps", "--virtual-time-budget=5000"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Run(), "%s", &stderr)
	return stdout.String(), stderr.String()
}

// digits is the number that pattern finds in text, without what groups its digits.
func digits(t *testing.T, text, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	require.NotNil(t, m, "%s in %s", pattern, text)
	return regexp.MustCompile(`\D`).ReplaceAllString(m[1], "")
}

// TestBrowsers drives real browsers against footfall with a database of its own. What
// they ask for ahead of a person, or for another page, is their decision: each row
// says what the person gets, and the test sees that the browser really asked.
func TestBrowsers(t *testing.T) {
	s := startSite(t)
	for _, b := range browsers {
		t.Run(b.program, func(t *testing.T) {
			d := drive(t, b)
			t.Run("fetched ahead", func(t *testing.T) { testAhead(t, s, d) })
			t.Run("embedded", func(t *testing.T) { testEmbedded(t, s, d) })
		})
	}
}

// browser is one that is driven, by puppeteer's name and the system's.
type browser struct{ name, program string }

func (b browser) path(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath(b.program)
	require.NoError(t, err)
	return path
}

var browsers = []browser{{"chrome", "chromium"}, {"firefox", "firefox"}}

// ways in which a page has a browser load a link ahead; only: in the one browser that does.
var ways = []struct{ name, html, only string }{
	{"link prefetch", `<link rel="prefetch" href="%s">`, ""},
	{"rules prefetch", `<script type="speculationrules">{"prefetch": [{"urls": ["%s"], "eagerness": "immediate"}]}</script>`, "chromium"},
	{"rules prerender", `<script type="speculationrules">{"prerender": [{"urls": ["%s"], "eagerness": "immediate"}]}</script>`, "chromium"},
}

// A person who sees the page is counted once; one who never sees it is not.
func testAhead(t *testing.T, s *site, d *driver) {
	link := s.url("count.test", "/")
	for _, way := range ways {
		for _, host := range []string{"count.test", "www.count.test", "others.test"} { // the same origin, the same site, another site
			for _, clicked := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s from %s, clicked %v", way.name, host, clicked), func(t *testing.T) {
					before := s.visits(t)
					s.person()
					d.do(t, "open", s.show(host, fmt.Sprintf(way.html, link)+`<a href="`+link+`">count</a>`))
					if way.only == "" || way.only == d.program {
						s.awaitRequest(t)
					}
					ahead := s.requests()
					if clicked {
						d.do(t, "click", "a")
						d.sees(t, "You are visitor")
						d.sees(t, fmt.Sprintf("You are visitor\n%d.", s.visitors(t)))
						d.sees(t, "This visit was counted.")
						assert.Equal(t, before+1, s.visits(t))
					} else {
						d.do(t, "open", s.show("others.test", "gone"))
						assert.Equal(t, before, s.visits(t))
					}
					t.Logf("ahead %q, in all %q", ahead, s.requests())
				})
			}
		}
	}
}

// embeddings are the ways in which a page makes its readers' browsers ask for another
// one that they do not see; only: in the one browser that does.
var embeddings = []struct{ name, html, only string }{
	{"img", `<img src="%s">`, ""},
	{"ten img", strings.Repeat(`<img src="%s">`, 10), ""},
	{"picture", `<picture><source srcset="%s"><img></picture>`, ""},
	{"svg image", `<svg><image href="%s"/></svg>`, ""},
	{"input image", `<input type="image" src="%s">`, ""},
	{"background", `<p style="background: url(%s)">text`, ""},
	{"icon", `<link rel="icon" href="%s">`, ""},
	{"iframe", `<iframe src="%s"></iframe>`, ""},
	{"iframe, sandboxed", `<iframe sandbox src="%s"></iframe>`, ""},
	{"frame", `<frameset><frame src="%s"></frameset>`, ""},
	{"object", `<object data="%s"></object>`, ""},
	{"embed", `<embed src="%s">`, ""},
	{"video", `<video src="%s" preload="auto"></video>`, ""},
	{"audio", `<audio src="%s" preload="auto"></audio>`, ""},
	{"poster", `<video poster="%s"></video>`, ""},
	{"track", `<video crossorigin><track default kind="captions" src="%s"></video><script>document.querySelector("video").textTracks[0].mode = "showing"</script>`, ""},
	{"stylesheet", `<link rel="stylesheet" href="%s">`, ""},
	{"import of a stylesheet", `<style>@import "%s";</style>`, ""},
	{"font", `<style>@font-face { font-family: f; src: url(%s) } p { font-family: f }</style><p>text`, ""},
	{"script", `<script src="%s"></script>`, ""},
	{"module", `<script type="module" src="%s"></script>`, ""},
	{"modulepreload", `<link rel="modulepreload" href="%s">`, ""},
	{"preload as image", `<link rel="preload" as="image" href="%s">`, ""},
	{"preload as script", `<link rel="preload" as="script" href="%s">`, ""},
	{"preload as style", `<link rel="preload" as="style" href="%s">`, ""},
	{"preload as font", `<link rel="preload" as="font" crossorigin href="%s">`, ""},
	{"preload as fetch", `<link rel="preload" as="fetch" crossorigin href="%s">`, ""},
	{"fetch no-cors", `<script>fetch("%s", {mode: "no-cors"})</script>`, ""},
	{"fetch", `<script>fetch("%s")</script>`, ""},
	{"fetch with credentials", `<script>fetch("%s", {credentials: "include"})</script>`, ""},
	{"XMLHttpRequest", `<script>x = new XMLHttpRequest(); x.open("GET", "%s"); x.send()</script>`, ""},
	{"EventSource", `<script>new EventSource("%s")</script>`, ""},
	{"WebSocket", `<script>new WebSocket("%s".replace("https", "wss"))</script>`, ""},
	{"manifest", `<link rel="manifest" href="%s">`, "chromium"},
}

// What another page embeds is nobody's visit; opening and reloading are.
func testEmbedded(t *testing.T, s *site, d *driver) {
	for _, way := range embeddings {
		t.Run(way.name, func(t *testing.T) {
			before := s.visits(t)
			s.person()
			html := way.html
			for i := range strings.Count(html, "%s") {
				html = strings.Replace(html, "%s", s.url("count.test", fmt.Sprintf("/?%d", i)), 1)
			}
			d.do(t, "open", s.show("others.test", html))
			if way.only == "" || way.only == d.program {
				s.awaitRequest(t)
			}
			d.do(t, "open", s.show("others.test", "gone"))
			t.Logf("%q", s.requests())
			assert.Equal(t, before, s.visits(t))
		})
	}
	t.Run("opened and reloaded", func(t *testing.T) {
		before := s.visits(t)
		s.person()
		d.do(t, "open", s.url("count.test", "/"))
		d.sees(t, fmt.Sprintf("You are visitor\n%d.", s.visitors(t)))
		assert.Equal(t, before+1, s.visits(t))
		d.do(t, "reload", nil)
		d.sees(t, "You have visited this page\n2\ntimes.")
		assert.Equal(t, before+2, s.visits(t))
	})
}

// site is footfall behind a proxy with TLS, as in a deployment, and beside it the
// pages of others. All hosts end in .test:
//
//	count   footfall, asked by one person at a time
//	first   by another person each time
//	bot     by a program
//	away    footfall without a database
//	others  pages of others
type site struct {
	front *httptest.Server
	db    *sql.DB

	mu     sync.Mutex
	client int               // the last two numbers of the person's address
	pages  map[string]string // of others, by path
	asked  []string          // answered requests for the page, since the person came
}

func startSite(t *testing.T) *site {
	t.Helper()
	for _, program := range []string{"postgres", "node", "npm", "chromium", "firefox"} {
		_, err := sh(filepath.Join(repoDir(), "delivery", "need.sh"), program)
		require.NoError(t, err)
	}
	program := filepath.Join(t.TempDir(), "footfall")
	_, err := sh("go", "build", "-C", repoDir(), "-o", program, ".")
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "footfall") // the server's account cannot enter t.TempDir
	require.NoError(t, err)
	cluster, err := devdb.Start(t.Context(), dir)
	require.NoError(t, err)
	atEnd(func() { // a test that is interrupted does not clean up
		if err := errors.Join(cluster.Stop(), os.RemoveAll(dir)); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
		}
	})

	s := &site{pages: map[string]string{}}
	s.db, err = sql.Open("pgx", cluster.URL("footfall"))
	require.NoError(t, err)
	t.Cleanup(func() { s.db.Close() })
	footfall := serve(t, program, cluster.URL("footfall"))
	away := serve(t, program, "postgres://nobody@127.0.0.1:1/nothing")
	eventually(t, 2*time.Minute, "footfall is ready", func() error {
		answer, err := http.Get(footfall.JoinPath("readyz").String())
		if err != nil {
			return err
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return errors.New(answer.Status)
		}
		return nil
	})
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		s.mu.Lock()
		defer s.mu.Unlock()
		r.SetURL(footfall)
		switch host, _, _ := strings.Cut(r.In.Host, "."); host {
		case "first":
			if r.In.URL.Path == "/" {
				s.client++
			}
		case "bot":
			r.Out.Header.Set("User-Agent", "Googlebot/2.1")
		case "away":
			r.SetURL(away)
		}
		r.Out.Host = r.In.Host
		r.Out.Header.Set("X-Forwarded-Proto", "https")
		r.Out.Header.Set("X-Forwarded-For", fmt.Sprintf("198.18.%d.%d", s.client/256, s.client%256))
	}}
	s.front = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		text, ok := s.pages[r.URL.Path]
		s.mu.Unlock()
		if ok {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, text)
			return
		}
		proxy.ServeHTTP(w, r)
		if r.URL.Path == "/" {
			s.mu.Lock()
			s.asked = append(s.asked, r.Header.Get("Sec-Fetch-Dest")+" "+r.Header.Get("Sec-Purpose"))
			s.mu.Unlock()
		}
	}))
	t.Cleanup(s.front.Close)
	return s
}

// serve starts footfall and returns where it listens.
func serve(t *testing.T, program, database string) *url.URL {
	t.Helper()
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+database, "LISTEN_ADDR=127.0.0.1:0", "LOG_FORMAT=text", "USER_NAME=Ann Example", "USER_URL=https://example.org/")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	atEnd(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if m := regexp.MustCompile(`addr=(127\.0\.0\.1:\d+)`).FindStringSubmatch(lines.Text()); m != nil {
			go io.Copy(io.Discard, out)
			return &url.URL{Scheme: "http", Host: m[1]}
		}
	}
	t.Fatal("footfall ended")
	return nil
}

func (s *site) url(host, path string) string {
	_, port, _ := net.SplitHostPort(s.front.Listener.Addr().String())
	return "https://" + host + ":" + port + path
}

// person makes what comes another person's requests.
func (s *site) person() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client++
	s.asked = nil
}

// show serves a page on a host and returns its URL.
func (s *site) show(host, body string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := fmt.Sprintf("/page-%d", len(s.pages))
	s.pages[path] = "<!doctype html><title>a page of another</title>" + body
	return s.url(host, path)
}

// requests are those for footfall's page since the person came: Sec-Fetch-Dest and Sec-Purpose.
func (s *site) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// awaitRequest waits until the browser has asked for footfall's page.
func (s *site) awaitRequest(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, "the browser asks for the page", func() error {
		if len(s.requests()) == 0 {
			return errors.New("no request")
		}
		return nil
	})
}

func (s *site) visits(t *testing.T) int   { return s.count(t, "visits") }
func (s *site) visitors(t *testing.T) int { return s.count(t, "visitors") }

func (s *site) count(t *testing.T, column string) (n int) {
	t.Helper()
	require.NoError(t, s.db.QueryRowContext(t.Context(), "SELECT "+column+" FROM totals").Scan(&n))
	return n
}

// driver is a browser that drive.mjs drives.
type driver struct {
	browser
	in  io.Writer
	out *bufio.Reader
}

func drive(t *testing.T, b browser) *driver {
	t.Helper()
	cmd := exec.Command("node", filepath.Join(nodeDir(t), "drive.mjs"), b.name, b.path(t))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		assert.NoError(t, cmd.Wait())
	})
	return &driver{b, in, bufio.NewReader(out)}
}

// screen is what the browser shows, and by how many pixels it is wider than the window.
type screen struct {
	Seen, Error string
	Over        int
}

// do has the browser do something.
func (d *driver) do(t *testing.T, action string, value any) screen {
	t.Helper()
	require.NoError(t, json.NewEncoder(d.in).Encode(map[string]any{action: value}))
	line, err := d.out.ReadBytes('\n')
	require.NoError(t, err)
	var answer screen
	require.NoError(t, json.Unmarshal(line, &answer))
	require.Empty(t, answer.Error)
	return answer
}

// sees waits until a text is on the screen.
func (d *driver) sees(t *testing.T, want string) {
	t.Helper()
	eventually(t, 20*time.Second, "the person sees "+want, func() error {
		if seen := d.do(t, "look", nil).Seen; !strings.Contains(seen, want) {
			return fmt.Errorf("there is %q", seen)
		}
		return nil
	})
}

// nodeDir is a directory with the programs of e2e/browser and the packages that they
// use, which stay there until others are needed.
func nodeDir(t *testing.T) string {
	t.Helper()
	dir := "/var/tmp/footfall-e2e/browser"
	require.NoError(t, os.MkdirAll(dir, 0o755))
	lock, err := os.ReadFile(filepath.Join(repoDir(), "e2e/browser/package-lock.json"))
	require.NoError(t, err)
	have, _ := os.ReadFile(filepath.Join(dir, "installed"))
	_, err = sh("cp", "-r", filepath.Join(repoDir(), "e2e/browser")+"/.", dir)
	require.NoError(t, err)
	if !bytes.Equal(have, lock) {
		_, err = sh("npm", "ci", "--prefix", dir, "--ignore-scripts", "--no-audit", "--no-fund")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "installed"), lock, 0o644))
	}
	return dir
}
