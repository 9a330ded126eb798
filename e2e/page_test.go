//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestPage has other people's tools judge the page in the states in which a person
// meets it, and looks at it from a telephone to a wall.
func TestPage(t *testing.T) {
	s := startSite(t)
	_, err := s.db.ExecContext(t.Context(), `INSERT INTO days (day, visits, visitors, new_visitors)
		SELECT (now() AT TIME ZONE 'UTC')::date - ago, 40 + ago * 37 % 101, 20 + ago * 17 % 31, 10 FROM generate_series(1, 29) AS ago`)
	require.NoError(t, err)
	_, err = s.db.ExecContext(t.Context(), `UPDATE totals SET visits = 14901, visitors = 4406, since = '2026-03-01'`)
	require.NoError(t, err)
	_, err = s.db.ExecContext(t.Context(), `INSERT INTO evidence (kind, agreed) VALUES ('recount', true), ('restore', true)`)
	require.NoError(t, err)
	pages := map[string]string{ // by what it is
		"first visit": s.url("first.test", "/"),
		"again":       s.url("count.test", "/"),
		"not counted": s.url("bot.test", "/"),
		"days":        s.url("count.test", "/days"),
		"503":         s.url("away.test", "/"),
		"404":         s.url("count.test", "/nowhere"),
		"400":         s.url("count.test", "/badge.svg?show=nothing"),
	}
	eventually(t, time.Minute, "the page shows the days", func() error {
		if text := s.get(t, pages["days"]); strings.Count(text, "<td>0<") > 3 {
			return errors.New(text)
		}
		return nil
	})

	t.Run("Nu checker", func(t *testing.T) {
		_, err := sh(filepath.Join(repoDir(), "delivery", "need.sh"), "java")
		require.NoError(t, err)
		files := []string{"-jar", filepath.Join(nodeDir(t), "node_modules/vnu-jar/build/dist/vnu.jar"), "--Werror", "--stdout", "--also-check-css", "--also-check-svg",
			"--filterpattern", ".*“(mask|vector-effect)”.*"} // which it does not know: CSS Masking 1, SVG 2
		dir := t.TempDir()
		keep := func(name, url string) {
			file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			require.NoError(t, os.WriteFile(file, []byte(s.get(t, url)), 0o644))
			files = append(files, file)
		}
		for name, url := range pages {
			keep(name+".html", url)
		}
		for _, path := range []string{"/badge.svg", "/chart.svg"} {
			keep(filepath.Base(path), s.url("count.test", path))
		}
		assets, err := filepath.Glob(filepath.Join(repoDir(), "assets", "*.svg"))
		require.NoError(t, err)
		for _, file := range append(assets, filepath.Join(repoDir(), "assets/style.css")) {
			if name := filepath.Base(file); name != "badge.svg" && name != "chart.svg" { // these two are templates
				files = append(files, file)
			}
		}
		out, err := sh("java", files...)
		assert.NoError(t, err)
		assert.Empty(t, out)
	})
	for tool, names := range map[string]string{
		"axe":           "first visit, again, not counted, days, 503, 404",
		"html-validate": "first visit, again, not counted, days, 503, 404, 400",
		"lighthouse":    "first visit, again, days", // an error's status costs points
	} {
		t.Run(tool, func(t *testing.T) {
			args := []string{filepath.Join(nodeDir(t), "judge.mjs"), browsers[0].path(t), tool}
			for name := range strings.SplitSeq(names, ", ") {
				args = append(args, pages[name])
			}
			judge := exec.CommandContext(t.Context(), "node", args...)
			judge.Stderr = os.Stderr
			out, err := judge.Output()
			assert.NoError(t, err)
			assert.Empty(t, string(out))
		})
	}
	for _, b := range browsers {
		t.Run("seen in "+b.program, func(t *testing.T) {
			d := drive(t, b)
			for _, width := range []int{320, 360, 500, 768, 1280, 2560} {
				d.do(t, "width", width)
				for name, url := range pages {
					assert.LessOrEqual(t, d.do(t, "open", url).Over, 0, "%s scrolls sideways at %d px", name, width)
					if name == "first visit" {
						d.sees(t, "You are visitor")
						d.do(t, "picture", filepath.Join(outDir(), fmt.Sprintf("page-%s-%d.png", b.program, width)))
					}
				}
			}
		})
	}
}

// get returns what is at a URL of the site.
func (s *site) get(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, s.front.Listener.Addr().String())
		},
	}}
	defer client.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	r.Header.Set("Accept", "text/html")
	answer, err := client.Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return string(text)
}
