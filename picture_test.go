//go:build picture

package main

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"footfall/internal/visitor"
	"html"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestPicture makes the README's pictures of the page with Chromium:
// `make picture`. The numbers on them are examples.
func TestPicture(t *testing.T) {
	version, err := os.ReadFile("version.txt")
	require.NoError(t, err)
	example := aTally(31, 46, 112, 95, 50, 83, 121, 54, 61, 57, 48, 109, 120, 74, 96, 147, 105, 63, 187, 96, 99, 135, 91, 98, 162, 149, 85, 101, 136, 64)
	example.visitors, example.visits = 2318, 14902
	s := &server{page: &page{version: strings.TrimSpace(string(version)), userName: "Ann Example", userURL: "https://example.org/"}}
	mux := http.NewServeMux()
	mux.Handle("GET /assets/{file}", s.try(asset))
	mux.Handle("GET /{$}", s.try(func(w http.ResponseWriter, r *http.Request) error {
		return s.page.render(example).write(w, http.StatusOK, you{Result: visitor.Counted, Source: visitor.FromForwarded}, 12)
	}))
	web := httptest.NewServer(s.secured(mux))
	defer web.Close()

	for scheme, preferred := range map[string]string{"light": "1", "dark": "0"} {
		picture := small(t, screenshot(t, web.URL, "--window-size=1280,1060", "--blink-settings=preferredColorScheme="+preferred))
		assert.Less(t, len(picture), 60_000)
		t.Logf("%s: %d bytes", scheme, len(picture))
		require.NoError(t, os.WriteFile("docs/page-"+scheme+".png", picture, 0o644))
	}
}

// TestFavicon makes favicon.ico of favicon.svg, for what looks for an icon
// without reading the page: one PNG of 32 pixels behind an icon file's header.
func TestFavicon(t *testing.T) {
	const size = 32
	svg, err := os.ReadFile("assets/favicon.svg")
	require.NoError(t, err)
	sized := bytes.Replace(svg, []byte("<svg "), fmt.Appendf(nil, `<svg width="%d" height="%d" `, size, size), 1)
	file := testFile(t, "icon.html", `<!doctype html><body style="margin:0">`+string(sized))
	full := screenshot(t, "file://"+file, "--default-background-color=00000000", "--window-size=500,500")
	icon := image.NewNRGBA(image.Rect(0, 0, size, size))
	draw.Draw(icon, icon.Bounds(), full, image.Point{}, draw.Src)
	var picture bytes.Buffer
	require.NoError(t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&picture, icon))
	ico := []byte{0, 0, 1, 0, 1, 0, size, size, 0, 0, 1, 0, 32, 0} // one picture of 32 bits a pixel
	ico = binary.LittleEndian.AppendUint32(ico, uint32(picture.Len()))
	ico = binary.LittleEndian.AppendUint32(ico, uint32(len(ico)+4))
	require.NoError(t, os.WriteFile("assets/favicon.ico", append(ico, picture.Bytes()...), 0o644))
}

// TestTerminal makes docs/deploy.svg, what a deployment looks like, from the log
// that TestService (make e2e) has left of site.yml on two bare hosts. The
// lines of the tasks are left out: "…".
func TestTerminal(t *testing.T) {
	logs, err := filepath.Glob("e2e/out/*-TestService.log")
	require.NoError(t, err)
	require.NotEmpty(t, logs, "run make e2e first, or its TestService")
	log, err := os.ReadFile(logs[0])
	require.NoError(t, err)
	lines := []string{"$ ansible-playbook -i inventory/static.yml site.yml -e app_image_archive=…", ""}
	var play string
	tasks := 0
	end := func(next string) {
		if tasks > 0 {
			lines = append(lines, fmt.Sprintf("%-46s … %2d %s", play, tasks, plural(fmt.Sprint(tasks), "task")))
		}
		play, tasks = next, 0
	}
	var recap bool
	for line := range strings.Lines(string(log)) {
		line = strings.TrimRight(line, " \n")
		switch name, isPlay := strings.CutPrefix(line, "PLAY ["); {
		case isPlay:
			end("PLAY [" + strings.TrimRight(name, "* "))
		case strings.HasPrefix(line, "TASK ["):
			tasks++
		case strings.HasPrefix(line, "PLAY RECAP"):
			end("")
			recap = true
			lines = append(lines, "", "PLAY RECAP")
		case strings.HasPrefix(line, "TASKS RECAP"):
			recap = false
		case recap && strings.Contains(line, "unreachable="):
			lines = append(lines, line[:strings.Index(line, "skipped=")])
			require.Contains(t, line, "failed=0 ", "of a run that succeeded")
		}
	}
	took := regexp.MustCompile(`TASKS RECAP.*\n.*\) +(\d+:\d\d:\d\d)`).FindStringSubmatch(string(log))
	require.NotNil(t, took)
	lines = append(lines, "", "took "+took[1])

	const lineHeight, margin = 19, 16
	var svg bytes.Buffer
	height := 2*margin + lineHeight*len(lines)
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" width="720" height="%d" viewBox="0 0 720 %d" role="img"><title>site.yml on two bare hosts</title>`+"\n", height, height)
	fmt.Fprintf(&svg, `<rect width="100%%" height="100%%" rx="8" fill="#131008"/><g font-family="ui-monospace,Menlo,Consolas,DejaVu Sans Mono,monospace" font-size="13" fill="#f4ead2">`+"\n")
	for i, line := range lines {
		fmt.Fprintf(&svg, `<text x="%d" y="%d">%s</text>`+"\n", margin, margin+lineHeight*(i+1)-6, strings.ReplaceAll(html.EscapeString(line), " ", "\u00a0"))
	}
	svg.WriteString("</g></svg>\n")
	require.NoError(t, os.WriteFile("docs/deploy.svg", svg.Bytes(), 0o644))
}

// screenshot returns what Chromium shows of a page.
func screenshot(t *testing.T, url string, args ...string) image.Image {
	t.Helper()
	shot := filepath.Join(t.TempDir(), "shot.png")
	out, err := exec.CommandContext(t.Context(), "chromium", append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--user-data-dir=" + t.TempDir(), "--hide-scrollbars", "--force-prefers-reduced-motion", "--screenshot=" + shot, url}, args...)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	file, err := os.Open(shot)
	require.NoError(t, err)
	defer file.Close()
	full, err := png.Decode(file)
	require.NoError(t, err)
	return full
}

// small returns the picture with its 256 most frequent colours, which is a
// third of the bytes: the page has few, and the rest are the edges of letters.
func small(t *testing.T, full image.Image) []byte {
	t.Helper()
	pixels := map[color.Color]int{}
	for y := range full.Bounds().Dy() {
		for x := range full.Bounds().Dx() {
			pixels[full.At(x, y)]++
		}
	}
	var colors color.Palette
	for c := range pixels {
		colors = append(colors, c)
	}
	slices.SortFunc(colors, func(a, b color.Color) int {
		return cmp.Or(pixels[b]-pixels[a], strings.Compare(fmt.Sprint(a), fmt.Sprint(b))) // the same each time
	})
	paletted := image.NewPaletted(full.Bounds(), colors[:min(len(colors), 256)])
	draw.Draw(paletted, full.Bounds(), full, image.Point{}, draw.Src)
	var buf bytes.Buffer
	require.NoError(t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&buf, paletted))
	return buf.Bytes()
}
