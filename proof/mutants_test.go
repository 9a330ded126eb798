//go:build mutants

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// mutant is an error in the program's SQL, and the tests of the program that must notice it.
type mutant struct {
	name  string
	edit  edit
	tests string // a regular expression for go test -run
}

var mutants = []mutant{
	// A batch.
	{"a batch applies whatever its number is", edit{"WHERE id = $1::bigint AND batch = $2::bigint - 1\n", "WHERE id = $1::bigint\n"}, "TestLostAnswer"},
	{"a batch does not lock its writer", edit{"value = $7::text)\n\t\tFOR UPDATE\n", "value = $7::text)\n"}, "TestAnswerLostWhileTheBatchWaits"},
	{"a batch applies without totals", edit{"\t\t\tAND EXISTS (SELECT FROM totals)\n", ""}, "TestNothingIsCountedInAnotherDatabase"},
	{"a batch applies with another key", edit{"value = $7::text)\n\t\tFOR UPDATE", "value <> $7::text || 'x')\n\t\tFOR UPDATE"}, "TestNothingIsCountedInAnotherDatabase"},
	{"a visitor gets one visit per batch", edit{"visits    = old.visits + excluded.visits,", "visits    = old.visits + 1,"}, "TestManyClientsOneVisitor"},
	{"the latest day goes back", edit{"GREATEST(old.last_seen, excluded.last_seen)", "excluded.last_seen"}, "TestLateBatch"},
	{"every day had a visit on the day before", edit{"THEN old.last_seen = excluded.last_seen - 1\n", "THEN true\n"}, "TestAgainstModel|TestCountOverDays"},
	{"a late visit is not remembered", edit{"WHEN old.last_seen = excluded.last_seen + 1 THEN true\n", "WHEN old.last_seen = excluded.last_seen + 1 THEN old.seen_day_before\n"}, "TestLateBatch|TestAgainstModel"},
	{"a late visit always makes a visitor of its day", edit{"THEN NOT old.seen_day_before\n", "THEN true\n"}, "TestLateBatch|TestAgainstModel"},
	{"an imported visitor is none of its first day", edit{"ELSE old.last_seen IS NULL END\n", "ELSE false END\n"}, "TestTakeOver"},
	{"every visit of the first day is a new visitor", edit{"first_of_day AND first_seen IS NOT DISTINCT FROM", "first_seen IS NOT DISTINCT FROM"}, "TestCountOverDays|TestManyClientsOneVisitor"},
	{"the numbers of a batch are in another order", edit{"array_agg(visits ORDER BY id)", "array_agg(visits ORDER BY id DESC)"}, "TestAgainstModel|TestVisitsGather"},
	{"every visit is a visitor of the day", edit{"count(*) FILTER (WHERE first_of_day) AS visitors", "count(*) AS visitors"}, "TestCountOverDays"},
	{"a batch without a writer goes on", edit{"\t\tHAVING count(*) > 0\n", ""}, "TestLostAnswer|TestWritersRowIsGone"},
	{"a day keeps only its latest batch", edit{"visits       = old.visits + excluded.visits,", "visits       = excluded.visits,"}, "TestCountOverDays"},
	{"a day keeps only its first visitors", edit{"visitors     = old.visitors + excluded.visitors,", "visitors     = old.visitors,"}, "TestCountOverDays"},
	{"a day keeps only its first new visitors", edit{"new_visitors = old.new_visitors + excluded.new_visitors\n", "new_visitors = old.new_visitors\n"}, "TestCountOverDays"},
	{"the totals get one visit per batch", edit{"visits   = totals.visits + $6::bigint,", "visits   = totals.visits + 1,"}, "TestManyClientsOneVisitor"},
	{"the totals get every visitor of the day", edit{"totals.visitors + batch.new_visitors", "totals.visitors + batch.visitors"}, "TestCountOverDays"},
	{"a writer stays at its batch", edit{"batch        = $2::bigint,", "batch        = writers.batch,"}, "TestLostAnswer|TestCountOverDays"},
	{"the receipt has two numbers in each other's place", edit{"total.visitors, today.visits, today.visitors,", "total.visitors, today.visitors, today.visits,"}, "TestCountOverDays"},
	{"a replay takes any receipt", edit{"WHERE id = $1::bigint AND batch = $2::bigint\n\t\tRETURNING receipt", "WHERE id = $1::bigint AND $2::bigint > 0\n\t\tRETURNING receipt"}, "TestWriterIsOutOfStep"},
	{"a replay reads", edit{"\t\tUPDATE writers\n\t\tSET committed_at = now()\n\t\tWHERE id = $1::bigint AND batch = $2::bigint\n\t\tRETURNING receipt`+pastSQL,",
		"\t\tSELECT receipt`+pastSQL+`\n\t\tFROM writers\n\t\tWHERE id = $1::bigint AND batch = $2::bigint`,"}, "TestCommitThatTheStandbyHasNotSeen"},
	{"a writer is old at once", edit{"committed_at < now() - interval '1 day'", "committed_at < now()"}, "TestOldWritersGo|TestInstancesShareADatabase"},
	// What is read.
	{"today is among the days before", edit{"WHERE day < $3::date AND", "WHERE day <= $3::date AND"}, "TestCountOverDays|TestLookAtNothing|TestStats"},
	{"the first of the days before is left out", edit{"day > $3::date - 30", "day > $3::date - 29"}, "TestPageWithHistory|TestStats"},
	{"nothing is read on a day without a visit", edit{"LEFT JOIN days AS today ON", "JOIN days AS today ON"}, "TestLookAtNothing"},
	{"the days are in another order", edit{"'' ORDER BY ago DESC), '')", "'' ORDER BY ago), '')"}, "TestStatsCSV"},
	{"a standby is not read-only", edit{"current_setting('transaction_read_only') = 'on'", "current_setting('transaction_read_only') = 'never'"}, "TestReadyz"},
	// What removes, imports and recounts.
	{"a forgotten visitor had one visit", edit{"forgotten_visits   = forgotten_visits + gone.visits,", "forgotten_visits   = forgotten_visits + 1,"}, "TestForget"},
	{"a forgotten visitor was not there on the day before", edit{"(day = last_seen OR day = last_seen - 1 AND seen_day_before)::int", "(day = last_seen)::int"}, "TestForgetOverDays"},
	{"several rows of an address are its largest", edit{"SELECT id, sum(visits)\n", "SELECT id, max(visits)\n"}, "TestTakeOver"},
	{"an imported visitor is always new", edit{"RETURNING xmax = 0 AS inserted", "RETURNING true AS inserted"}, "TestTakeOverManyRows"},
	{"processes that start together do not wait", edit{"SELECT pg_advisory_xact_lock($1)", "SELECT pg_try_advisory_xact_lock($1)"}, "TestMigrateTwelveAtOnce|TestMigrateLockTimeout"},
}

// TestMutantsSQL puts each error into the program's SQL and runs the tests that must
// notice it.
func TestMutantsSQL(t *testing.T) {
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			path, content, err := m.edit.find(programDir, nil)
			require.NoError(t, err)
			list := overlay(t, path, string(content))
			output, err := inProgram("test", "-overlay", list, "-count=1", "-failfast", "-timeout=5m", "-v", "-run", "^("+m.tests+")$", ".").CombinedOutput()
			// A mutant that does not compile proves nothing.
			if err == nil || bytes.Contains(output, []byte("[build failed]")) {
				t.Errorf("survived %s: %.4000s", m.tests, output)
			}
		})
	}
}

const programDir = ".."

func inProgram(args ...string) *exec.Cmd {
	cmd := exec.Command("go", args...)
	cmd.Dir = programDir
	return cmd
}

// overlay has the program compiled with other content in one of its files.
func overlay(t *testing.T, path, content string) (list string) {
	dir := t.TempDir()
	path, err := filepath.Abs(path)
	require.NoError(t, err)
	changed := filepath.Join(dir, "changed.go")
	require.NoError(t, os.WriteFile(changed, []byte(content), 0o644))
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{path: changed}})
	require.NoError(t, err)
	list = filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(list, replace, 0o644))
	return list
}

// gremlins mutates these files, each against the tests that are about it: all
// tests would take minutes for each mutant.
var gremlins = map[string]struct {
	tests    string     // a regular expression for go test -run
	survives []survivor // what these tests do not notice
}{
	"recorder.go": {
		tests: "ManyClientsOneVisitor|VisitsGather|Midnight|TooManyWait|WaitIsBounded|AnswerLostWhile|NumberOfAGivenUp|WritersRowIsGone|WriterIsOutOfStep|" +
			"CloseFlushes|CloseIsBounded|ExpiredBeforeItWasSent|PlacesOfNewVisitors|VisitWithoutADatabase",
	},
	"batch.go": {
		tests: "CountOverDays|AnswerLostWhile|WritersRowIsGone|WriterIsOutOfStep|OldWritersGo|ReadyzWhereVisitsFail|NothingIsCountedInAnotherDatabase|VerifyRecord|LookAtNothing|PageWithHistory",
	},
	"store.go": {
		tests: "Readyz$|LookAtNothing|StatsCSV|CountOverDays|Retryable|UnreachableDatabase|NothingIsCountedInAnotherDatabase|AnswerNotUnderstood|Forget$|VerifyRecord|IsolationOfTheDatabase|ReadsSurviveBrokenConnections",
	},
	"migrate.go": {
		tests: "OurMigrations|LineEndsOfMigrations|Migrate|NoNewKeyForOldVisitors|PrepareNewerDatabase|VisitorKey|TakeOver$",
	},
	"takeover.go": {
		tests: "TakeOver|CarryOver",
	},
	"commands.go": {
		tests: "Forget$|ForgetFails|ForgetImported|Verify|MigrateCommand|Healthcheck|DialAddr|DevRefuses",
	},
}

// survivor is a mutant that no test notices, and why that is right.
type survivor struct{ mutation, line, why string }

// TestMutantsGo has gremlins mutate each file.
func TestMutantsGo(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(programDir, "*.go"))
	require.NoError(t, err)
	for name, g := range gremlins {
		t.Run(name, func(t *testing.T) {
			result := filepath.Join(t.TempDir(), "gremlins.json")
			args := []string{"run", tool, "unleash", "--workers", "2", "--timeout-coefficient", "2", "--invert-logical", "--output", result, "--exclude-files", "/"}
			for _, f := range files {
				if base := filepath.Base(f); base != name {
					args = append(args, "--exclude-files", "^"+regexp.QuoteMeta(base)+"$")
				}
			}
			cmd := inProgram(args...)
			cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false -count=1 -vet=off -run=^Test("+g.tests+")")
			cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
			require.NoError(t, cmd.Run())
			content, err := os.ReadFile(result)
			require.NoError(t, err)
			var report struct {
				Files []struct {
					Name      string `json:"file_name"`
					Mutations []struct {
						Type, Status string
						Line, Column int
					}
				}
			}
			require.NoError(t, json.Unmarshal(content, &report))
			source, err := os.ReadFile(filepath.Join(programDir, name))
			require.NoError(t, err)
			lines := strings.Split(string(source), "\n")
			counts := map[string]int{}
			require.Len(t, report.Files, 1)
			for _, m := range report.Files[0].Mutations {
				line := lines[m.Line-1]
				if m.Type == "ARITHMETIC_BASE" && line[m.Column-1] == '+' { // of strings, it does not compile
					lines[m.Line-1] = line[:m.Column-1] + "-" + line[m.Column:]
					list := overlay(t, filepath.Join(programDir, name), strings.Join(lines, "\n"))
					lines[m.Line-1] = line
					if inProgram("build", "-buildvcs=false", "-overlay", list, "-o", os.DevNull, ".").Run() != nil {
						counts["does not compile"]++
						continue
					}
				}
				counts[m.Status]++
				if m.Status == "KILLED" || m.Status == "TIMED OUT" {
					continue
				}
				if !slices.ContainsFunc(g.survives, func(s survivor) bool { return s.mutation == m.Type && s.line == strings.TrimSpace(line) }) {
					t.Errorf("%s:%d:%d %s %s: %s", name, m.Line, m.Column, m.Type, m.Status, strings.TrimSpace(line))
				}
			}
			t.Log(counts)
		})
	}
}

const tool = "github.com/go-gremlins/gremlins/cmd/gremlins@v0.6.0"
