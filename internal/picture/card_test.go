package picture

import (
	"bytes"
	"image"
	"image/png"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Any number that a page can have is a picture of the size that previews take,
// and two numbers are two pictures.
func TestCard(t *testing.T) {
	t.Parallel()
	pictures := map[string]string{}
	for _, number := range []string{"", "1", "7", "71", "17", "4,407", "99,999", "100,000", "1,234,567", "9,999,999", "12,345,678", "1,000,000,000", "9,999,999,999"} {
		picture, err := Card(number)
		require.NoError(t, err)
		assert.Less(t, len(picture), 40<<10, "small enough for every preview")
		decoded, err := png.Decode(bytes.NewReader(picture))
		require.NoError(t, err)
		assert.Equal(t, image.Rect(0, 0, CardWidth, CardHeight), decoded.Bounds())
		assert.Empty(t, pictures[string(picture)], "%s looks like another", number)
		pictures[string(picture)] = number + " "
		// Nothing is cut off at the right edge, nor lies on the words above.
		for y := range CardHeight {
			assert.Equal(t, decoded.At(0, 0), decoded.At(CardWidth-30, y), "%s, row %d", number, y)
		}
	}
	without, err := Card("")
	require.NoError(t, err)
	longest, err := Card("9,223,372,036,854,775,807")
	require.NoError(t, err)
	assert.Equal(t, without, longest, "no number rather than a part of it")
}

// The rows are where the sheet has them.
func TestSheet(t *testing.T) {
	t.Parallel()
	sheet, err := load()
	require.NoError(t, err)
	width, height := CardWidth, CardHeight
	for _, row := range Rows {
		width, height = max(width, 10*row.Digit+row.Comma), height+row.Height
	}
	assert.Equal(t, image.Rect(0, 0, width, height), sheet.Bounds(), "run make picture")
}
