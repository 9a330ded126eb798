package original

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// A start that imports nothing says nothing of it.
func TestWhatAnImportSays(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		report Report
		want   int // lines
	}{{Report{}, 0}, {Report{rows: 1}, 1}, {Report{rows: 2, skipped: 1}, 2}} {
		var out bytes.Buffer
		tt.report.Log(slog.New(slog.NewTextHandler(&out, nil)))
		assert.Equal(t, tt.want, strings.Count(out.String(), "\n"))
	}
}
