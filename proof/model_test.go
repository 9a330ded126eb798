package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const modelPath = "model/footfall.pml"

var (
	quotation = regexp.MustCompile("(?s)([a-z]+\\.go):\\s*`([^`]*)`")
	guard     = regexp.MustCompile(`(?m)^#ifn?def (\w+)$`)
	spaces    = regexp.MustCompile(`\s+`)
)

// The model quotes the lines of the program that its steps stand for: it is the
// model of this program as long as they are there.
func TestModelQuotesTheProgram(t *testing.T) {
	t.Parallel()
	model, err := os.ReadFile(modelPath)
	require.NoError(t, err)
	quotations := quotation.FindAllStringSubmatch(string(model), -1)
	require.GreaterOrEqual(t, len(quotations), 10)
	for _, q := range quotations {
		source, err := os.ReadFile(filepath.Join("..", q[1]))
		require.NoError(t, err)
		assert.Contains(t, flat(string(source)), flat(q[2]), "the model quotes a line that %s does not have: see that the model still is what the program does", q[1])
	}
}

// The statement of a batch has the parts that the model takes for one step, in
// their order.
func TestStatementHasTheModelsParts(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("../batch.go")
	require.NoError(t, err)
	_, statement, found := strings.Cut(string(source), "const applyBatchSQL = `")
	require.True(t, found)
	statement, _, _ = strings.Cut(statement, "`")
	var parts []string
	for _, m := range regexp.MustCompile(`(?m)^\t(?:WITH|\),) (\w+) AS \($`).FindAllStringSubmatch(statement, -1) {
		parts = append(parts, m[1])
	}
	assert.Equal(t, []string{"writer", "visit", "visitor", "batch", "today", "total", "done"}, parts)
	assert.Equal(t, 1, strings.Count(statement, "FOR UPDATE"))
}

// Every guard that the model can do without is in the table, and only those.
func TestGuards(t *testing.T) {
	t.Parallel()
	model, err := os.ReadFile(modelPath)
	require.NoError(t, err)
	inModel := map[string]bool{}
	for _, m := range guard.FindAllStringSubmatch(string(model), -1) {
		if m[1] != "TROUBLE" {
			inModel[m[1]] = true
		}
	}
	inTable := map[string]bool{}
	for name := range guards {
		inTable[name] = true
	}
	assert.Equal(t, inModel, inTable)
}

func flat(s string) string { return spaces.ReplaceAllString(s, " ") }

// guards are what the protocol rests on, by the name that takes it away from
// the model.
var guards = map[string]string{
	"NO_ROW_LOCK":       "the row of the writer is locked before it is looked at",
	"NO_NUMBER":         "a batch applies only after the one before it",
	"REPLAY_READS":      "the answer to a batch that is applied already waits for the standby too",
	"NO_WAIT":           "the answer waits for the standby",
	"NEW_WRITER":        "a batch is sent again under the same number",
	"NUMBER_AGAIN":      "the number of a given-up batch is never used again",
	"GONE_AGAIN":        "a batch that may be applied is not sent again under another row",
	"WARNING_UNHEARD":   "a commit that warns is not taken for one that the standby has",
	"DENIED_AFTER_SENT": "a batch that was sent is not called uncounted",
	"CONNECTION_KEPT":   "a connection is given up after an error",
}
