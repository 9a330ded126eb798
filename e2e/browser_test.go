//go:build e2e

package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

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
