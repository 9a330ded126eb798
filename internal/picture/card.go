// Package picture draws pictures of numbers.
package picture

import (
	"bytes"
	_ "embed"
	"image"
	"image/png"
	"strings"
	"sync"
)

// Size in pixels of a card, the picture that a link's preview shows: what previews
// ask for (ogp.me has no size; the ratio of 1.91 to 1 is that of Facebook's and
// others' large cards).
const CardWidth, CardHeight = 1200, 630

//go:embed card.png
var sheet []byte

// The sheet is the sign without a number, and below it rows of "0123456789,", as
// go run ./delivery/picture draws them: the largest in which a number fits is taken.
var Rows = []Row{{168, 82, 365}, {124, 60, 270}, {93, 45, 203}}

// Row is how wide a digit and a comma are, and how high the row is; in pixels.
type Row struct{ Digit, Comma, Height int }

// The number's place on the sign: from left to right, its digits standing on the
// baseline, which is at 811 thousandths of a row.
const left, right, baseline = 60, 1140, 420

var load = sync.OnceValues(func() (*image.Paletted, error) {
	picture, err := png.Decode(bytes.NewReader(sheet))
	if err != nil {
		return nil, err
	}
	return picture.(*image.Paletted), nil
})

// Card returns the page's sign as PNG, with a number of digits and commas; "", and
// one that is too long: without.
func Card(number string) ([]byte, error) {
	from, err := load()
	if err != nil {
		return nil, err
	}
	sign := image.NewPaletted(image.Rect(0, 0, CardWidth, CardHeight), from.Palette)
	copyPart(sign, image.Point{}, from, sign.Rect)
	commas := strings.Count(number, ",")
	top := CardHeight
	for _, row := range Rows {
		if left+(len(number)-commas)*row.Digit+commas*row.Comma > right {
			top += row.Height
			continue
		}
		x, y := left, baseline-row.Height*811/1000
		for _, c := range number {
			glyph := image.Rect(int(c-'0')*row.Digit, top, int(c-'0'+1)*row.Digit, top+row.Height)
			if c == ',' {
				glyph = image.Rect(10*row.Digit, top, 10*row.Digit+row.Comma, top+row.Height)
			}
			copyPart(sign, image.Pt(x, y), from, glyph)
			x += glyph.Dx()
		}
		break
	}
	var buf bytes.Buffer
	err = png.Encode(&buf, sign)
	return buf.Bytes(), err
}

// copyPart copies part of a picture to another of the same palette.
func copyPart(to *image.Paletted, at image.Point, from *image.Paletted, part image.Rectangle) {
	for y := range part.Dy() {
		row := from.Pix[from.PixOffset(part.Min.X, part.Min.Y+y):]
		copy(to.Pix[to.PixOffset(at.X, at.Y+y):], row[:part.Dx()])
	}
}
