package main

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// seeds are errors that are put into a copy of the program, and the faults that
// bring each to light.
var seeds = map[string]struct {
	edits  []edit
	faults []string
}{
	"the writer's row is not locked": {
		edits:  []edit{{"\t\tFOR UPDATE\n\t), visit AS (", "\t), visit AS ("}},
		faults: []string{lockReset},
	},
	"the batch's number is not compared": {
		edits:  []edit{{"WHERE id = $1::bigint AND batch = $2::bigint - 1\n", "WHERE id = $1::bigint\n"}},
		faults: []string{lostAnswer},
	},
	"a batch that is sent again has another writer": {
		edits:  []edit{{"case postgres.Retryable(err) && ctx.Err() == nil: // try again\n", "case postgres.Retryable(err) && ctx.Err() == nil: // try again\n\t\t\tr.writer = 0\n"}},
		faults: []string{lostAnswer},
	},
	"the number of a given-up batch is used again": {
		edits:  []edit{{"\t\tcase sent:\n\t\t\tr.writer = 0\n", "\t\tcase sent:\n"}},
		faults: []string{swallowed},
	},
	"a batch that may be committed is called not counted": {
		edits: []edit{{"\"err\", postgres.Explain(cause))\n\t\t\treturn err\n",
			"\"err\", postgres.Explain(cause))\n\t\t\treturn fmt.Errorf(\"%w: %w\", errNotCounted, err)\n"}},
		faults: []string{swallowed},
	},
	"a batch is sent again although the row is gone": {
		edits:  []edit{{"case errors.Is(err, errWriterGone) && !sent &&", "case errors.Is(err, errWriterGone) &&"}},
		faults: []string{rowsGone},
	},
	"the answer does not wait for the commit": {
		edits:  []edit{{"SET default_transaction_isolation = 'read committed'", "SET default_transaction_isolation = 'read committed'; SET synchronous_commit = off"}},
		faults: []string{killedServer, failover},
	},
	"a replay reads and does not write": {
		edits: []edit{{"\t\tUPDATE writers\n\t\tSET committed_at = now()\n\t\tWHERE id = $1::bigint AND batch = $2::bigint\n\t\tRETURNING receipt`+pastSQL,",
			"\t\tSELECT receipt`+pastSQL+`\n\t\tFROM writers\n\t\tWHERE id = $1::bigint AND batch = $2::bigint`,"}},
		faults: []string{terminated},
	},
	"a warning is not heard": {
		edits:  []edit{{"err == nil && warning != nil {", "false && err == nil && warning != nil {"}},
		faults: []string{canceled},
	},
	"visits of one batch have the same number": {
		edits:  []edit{{"s.visits += v.nth - v.visits[v.id]\n", "s.visits += 0\n"}},
		faults: []string{lockedTotals},
	},
	"the new visitors of one batch have the same place": {
		edits:  []edit{{"\t\t\t\t\tnext--\n", ""}},
		faults: []string{lockedTotals},
	},
	"the page shows the totals of a moment ago": {
		edits: []edit{
			{"\tread time.Time\n", "\tread time.Time\n\tvisits int64\n"},
			{"\tif p.days == nil {\n\t\tp.date,", "\tif p.days == nil {\n\t\tp.visits = numbers[0]\n\t\tp.date,"},
			{"visits: numbers[0], visitors: numbers[1],", "visits: p.visits, visitors: numbers[1],"},
		},
		faults: []string{lostAnswer},
	},
	"the badge shows the totals of a moment ago": {
		edits: []edit{
			{"// look reads what", "var lastTally *tally\n\n// look reads what"},
			{"\tif err == nil {\n\t\ts.metrics.saw(t.visits, t.visitors)\n", "\tif err == nil {\n\t\tif lastTally == nil || t.visits%64 == 0 {\n\t\t\tlastTally = t\n\t\t}\n\t\tt = lastTally\n\t\ts.metrics.saw(t.visits, t.visitors)\n"},
		},
		faults: []string{lostAnswer},
	},
	"a visitor's latest day goes back": {
		edits:  []edit{{"GREATEST(old.last_seen, excluded.last_seen)", "excluded.last_seen"}},
		faults: []string{midnight, setBack},
	},
	"who comes back on another day is a new visitor": {
		edits:  []edit{{"totals.visitors + batch.new_visitors", "totals.visitors + batch.visitors"}},
		faults: []string{midnight},
	},
}

// The faults' names.
const (
	lostAnswer   = "connection cut after the commit, its answer lost"
	swallowed    = "answers swallowed, commits go through"
	lockReset    = "totals locked, the connections of waiting batches reset"
	rowsGone     = "answers swallowed, then the rows of the writers removed"
	lockedTotals = "totals locked by another program"
	killedServer = "PostgreSQL killed with -9, started again"
	failover     = "failover, the primary killed with -9"
	terminated   = "waits for the standby terminated, then failover"
	canceled     = "waits for the standby canceled, then failover"
	midnight     = "clocks step over midnight, one after the other"
	setBack      = "a clock is set back over midnight, and forth again"
)

// Each seed and each mutant still finds its place in the program, and each fault exists.
func TestSeeds(t *testing.T) {
	t.Parallel()
	var faults []string
	for _, f := range (&struck{}).faults() {
		faults = append(faults, f.name)
	}
	for name, seed := range seeds {
		for _, e := range seed.edits {
			_, _, err := e.find("..", nil)
			assert.NoError(t, err, name)
		}
		assert.Subset(t, faults, seed.faults, name)
	}
	for _, m := range mutants {
		_, _, err := m.edit.find("..", nil)
		assert.NoError(t, err, m.name)
	}
	require.GreaterOrEqual(t, len(slices.Collect(maps.Keys(seeds))), 10)
}
