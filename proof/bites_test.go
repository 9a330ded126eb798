//go:build bites

package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A checker that never finds anything proves nothing: it finds every seeded
// error, and none where none is.
func TestBites(t *testing.T) {
	// Few visitors, whom others replace soon: so visits of one visitor and new
	// visitors meet in a batch.
	bench := func(t *testing.T, faults []string, edits []edit) (status int) {
		t.Parallel()
		s := settings{
			bench: true, only: faults, lasts: 10 * time.Second, seed: 1, out: t.TempDir(), source: "..", edits: edits,
			load: load{crowd: newCrowd(), rate: 400, clients: 48, visitors: 30, each: 10, leaving: 5},
		}
		var out strings.Builder
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		h, err := s.runBench(ctx, &out)
		require.NoError(t, err, out.String())
		status, err = s.judge(h, &out)
		require.NoError(t, err)
		t.Log(out.String())
		return status
	}
	all := map[string]bool{}
	for _, seed := range seeds {
		for _, f := range seed.faults {
			all[f] = true
		}
	}
	t.Run("no error", func(t *testing.T) {
		assert.Equal(t, passed, bench(t, slices.Collect(maps.Keys(all)), nil))
	})
	for name, seed := range seeds {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, violated, bench(t, seed.faults, seed.edits))
		})
	}
}
