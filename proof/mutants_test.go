package main

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
	{"the numbers of a batch are in another order", edit{"END ORDER BY id) AS numbers", "END ORDER BY id DESC) AS numbers"}, "TestAgainstModel|TestVisitsGather"},
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
	{"a standby is not read-only", edit{"HAVING current_setting('transaction_read_only') = 'off'", ""}, "TestReadyz"},
	// What removes, imports and recounts.
	{"a forgotten visitor had one visit", edit{"forgotten_visits   = forgotten_visits + gone.visits,", "forgotten_visits   = forgotten_visits + 1,"}, "TestForget"},
	{"a forgotten visitor was not there on the day before", edit{"(day = last_seen OR day = last_seen - 1 AND seen_day_before)::int", "(day = last_seen)::int"}, "TestForgetOverDays"},
	{"several rows of an address are its largest", edit{"SELECT id, sum(visits)\n", "SELECT id, max(visits)\n"}, "TestTakeOver"},
	{"an imported visitor is always new", edit{"RETURNING xmax = 0 AS inserted", "RETURNING true AS inserted"}, "TestTakeOverManyRows"},
	{"processes that start together do not wait", edit{"SELECT pg_advisory_xact_lock(%d)", "SELECT pg_try_advisory_xact_lock(%d)"}, "TestMigrateTwelveAtOnce|TestMigrateLockTimeout"},
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
		tests: "Readyz$|LookAtNothing|StatsCSV|CountOverDays|NothingIsCountedInAnotherDatabase|AnswerNotUnderstood|Forget$",
	},
	"migrate.go": {
		tests: "OurMigrations|LineEndsOfMigrations|Migrate|MigrationIsTriedAgain|NoNewKeyForOldVisitors|PrepareNewerDatabase|VisitorKey|TakeOver$|ServeWithoutRightsOnTheSchema",
		survives: []survivor{
			{"CONDITIONALS_BOUNDARY", "if time.Until(deadline) < tableLockPause {", "the two differ for one nanosecond"},
		},
	},
	"internal/original/original.go": {
		tests: "TakeOver$|TakeOverO|TakeOverAtOnce|WhatAnImportSays",
	},
	"internal/postgres/errors.go": {
		tests: "Retryable|DatabaseURLs|Connect",
	},
	"upkeep.go": {
		tests: "Forget$|ForgetFails|ForgetImported|ForgetOverDays|Verify|CarryOver",
	},
	"commands.go": {
		tests: "MigrateCommand|Healthcheck|DialAddr|DevRefuses",
	},
}

// survivor is a mutant that no test notices, and why that is right.
type survivor struct{ mutation, line, why string }
