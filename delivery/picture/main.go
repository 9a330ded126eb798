// Command picture makes the pictures of this repository: the README's of the page, favicon.ico and the sheet
// of link previews with Chromium, and the README's of a deployment from the log of a run. `make picture` and
// `make terminal` run it.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"footfall/internal/picture"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	ctx := context.Background()
	for _, name := range os.Args[1:] {
		make, ok := map[string]func(context.Context) error{
			"page": makePage, "favicon": makeFavicon, "card": makeCard, "terminal": makeTerminal,
		}[name]
		if !ok {
			fmt.Fprintf(os.Stderr, "picture: %q is none of page, favicon, card, terminal\n", name)
			os.Exit(2)
		}
		if err := make(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "picture: %s: %v\n", name, err)
			os.Exit(1)
		}
	}
}

// makeFavicon makes favicon.ico of favicon.svg, for what looks for an icon
// without reading the page: one PNG of 32 pixels behind an icon file's header.
func makeFavicon(ctx context.Context) error {
	const size = 32
	svg, err := os.ReadFile("assets/favicon.svg")
	if err != nil {
		return err
	}
	sized := strings.Replace(string(svg), "<svg ", fmt.Sprintf(`<svg width="%d" height="%d" `, size, size), 1)
	full, err := screenshotOf(ctx, `<!doctype html><body style="margin:0">`+sized, "--default-background-color=00000000", "--window-size=500,500")
	if err != nil {
		return err
	}
	icon := image.NewNRGBA(image.Rect(0, 0, size, size))
	draw.Draw(icon, icon.Bounds(), full, image.Point{}, draw.Src)
	picture, err := encode(icon)
	if err != nil {
		return err
	}
	ico := []byte{0, 0, 1, 0, 1, 0, size, size, 0, 0, 1, 0, 32, 0} // one picture of 32 bits per pixel
	ico = binary.LittleEndian.AppendUint32(ico, uint32(len(picture)))
	ico = binary.LittleEndian.AppendUint32(ico, uint32(len(ico)+4))
	return os.WriteFile("assets/favicon.ico", append(ico, picture...), 0o644)
}

// makeCard makes the sheet that internal/picture cuts its pictures from: the sign,
// and below it rows of digits.
func makeCard(ctx context.Context) error {
	assets, err := filepath.Abs("assets")
	if err != nil {
		return err
	}
	var body strings.Builder
	width, height := picture.CardWidth, picture.CardHeight
	for _, row := range picture.Rows {
		for i, c := range "0123456789," {
			wide := row.Digit
			if c == ',' {
				wide = row.Comma
			}
			fmt.Fprintf(&body, `<i style="left:%dpx;top:%dpx;width:%dpx;font-size:%dpx">%c</i>`, i*row.Digit, height, wide, row.Height*10/11, c)
		}
		width, height = max(width, 10*row.Digit+row.Comma), height+row.Height
	}
	full, err := screenshotOf(ctx, fmt.Sprintf(`<!doctype html><meta charset="utf-8"><style>
		@font-face { font-family: face; src: url(file://%[1]s/face.woff2) }
		body { margin: 0; background: #ffc533; color: #1a1408; font-family: face }
		p { position: absolute; left: 60px; top: 48px; margin: 0; font-size: 50px }
		b { font-size: 76px; margin-right: .3em }
		i { position: absolute; font-style: normal; line-height: 1.1; text-align: center }
		div { position: absolute; left: 60px; top: 480px; width: 1080px; height: 90px; background: url(file://%[1]s/steps.svg) 0 0 / auto 100%% repeat-x }
		</style><p><b>footfall</b> counts unique visitors exactly<div></div>%[2]s`, assets, body.String()),
		fmt.Sprintf("--window-size=%d,%d", width, height+200), "--disable-lcd-text", "--allow-file-access-from-files")
	if err != nil {
		return err
	}
	sign, ink := color.RGBA{0xff, 0xc5, 0x33, 0xff}, color.RGBA{0x1a, 0x14, 0x08, 0xff}
	const shades = 16 // four bits per pixel
	var palette color.Palette
	for i := range shades {
		mix := func(a, b uint8) uint8 { return uint8((int(a)*(shades-1-i) + int(b)*i) / (shades - 1)) }
		palette = append(palette, color.RGBA{mix(sign.R, ink.R), mix(sign.G, ink.G), mix(sign.B, ink.B), 0xff})
	}
	sheet := image.NewPaletted(image.Rect(0, 0, width, height), palette)
	draw.Draw(sheet, sheet.Bounds(), full, image.Point{}, draw.Src)
	picture, err := encode(sheet)
	if err != nil {
		return err
	}
	return os.WriteFile("internal/picture/card.png", picture, 0o644)
}

// screenshotOf returns what Chromium shows of a document.
func screenshotOf(ctx context.Context, document string, args ...string) (image.Image, error) {
	dir, err := os.MkdirTemp("", "picture")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "document.html")
	if err := os.WriteFile(file, []byte(document), 0o644); err != nil {
		return nil, err
	}
	return screenshot(ctx, "file://"+file, args...)
}

// screenshot returns what Chromium shows of a page, without movement.
func screenshot(ctx context.Context, url string, args ...string) (image.Image, error) {
	dir, err := os.MkdirTemp("", "picture")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	shot := filepath.Join(dir, "shot.png")
	out, err := exec.CommandContext(ctx, "chromium", append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
		"--user-agent=Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0.0.0 Safari/537.36", // headless Chromium says that it is a program
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--user-data-dir=" + filepath.Join(dir, "profile"), "--hide-scrollbars", "--force-prefers-reduced-motion", "--screenshot=" + shot, url}, args...)...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("chromium: %w: %s", err, out)
	}
	picture, err := os.ReadFile(shot)
	if err != nil {
		return nil, err
	}
	return png.Decode(bytes.NewReader(picture))
}

// fewColors returns the picture with its 256 most frequent colours, which is a
// third of the bytes: the page has few, and the rest are the edges of letters.
func fewColors(full image.Image) image.Image {
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
	few := image.NewPaletted(full.Bounds(), colors[:min(len(colors), 256)])
	draw.Draw(few, full.Bounds(), full, image.Point{}, draw.Src)
	return few
}

func encode(picture image.Image) ([]byte, error) {
	var buf bytes.Buffer
	err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&buf, picture)
	return buf.Bytes(), err
}
