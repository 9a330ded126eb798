package main

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A history is written as its visits in the order of their requests, and what
// the check must say of it.
func TestCheck(t *testing.T) {
	t.Parallel()
	at := func(place int64, v visit) visit {
		v.place = place
		return v
	}
	// Who is new is the latest of all visitors, unless at says otherwise.
	did := func(visitor int, call, ret, number, visits, visitors int64) visit {
		v := visit{visitor: visitor, call: call, ret: ret, number: number, visits: visits, visitors: visitors}
		if number == 1 {
			v.place = visitors
		}
		return v
	}
	open := func(visitor int, call int64) visit {
		return visit{visitor: visitor, call: call, ret: never, outcome: unknown}
	}
	tests := map[string]struct {
		visits        []visit
		reads         []read
		end           [2]int64 // visits, visitors
		want          string   // the invariant that does not hold; empty: all do
		part          int      // how many visits are reported
		withStrangers bool
	}{
		"one after the other":              {visits: []visit{did(1, 1, 2, 1, 1, 1), did(1, 3, 4, 2, 2, 1), did(2, 5, 6, 1, 3, 2)}, end: [2]int64{3, 2}},
		"one batch":                        {visits: []visit{did(1, 1, 9, 2, 3, 2), at(1, did(1, 2, 9, 1, 3, 2)), did(2, 3, 9, 1, 3, 2)}, end: [2]int64{3, 2}},
		"an unknown one counted":           {visits: []visit{did(1, 1, 2, 1, 1, 1), open(1, 3), did(1, 5, 6, 3, 3, 1)}, end: [2]int64{3, 1}},
		"an unknown one not counted":       {visits: []visit{did(1, 1, 2, 1, 1, 1), open(1, 3), did(1, 5, 6, 2, 2, 1)}, end: [2]int64{2, 1}},
		"an unknown one counted late":      {visits: []visit{open(1, 1), did(1, 2, 3, 1, 1, 1), did(1, 5, 6, 2, 2, 1), did(1, 7, 8, 4, 4, 1)}, end: [2]int64{4, 1}},
		"a number twice":                   {visits: []visit{did(1, 1, 4, 1, 1, 1), did(1, 2, 5, 1, 2, 1)}, end: [2]int64{2, 1}, want: "Numbers", part: 2},
		"a later visit, a smaller number":  {visits: []visit{did(1, 1, 2, 2, 1, 1), did(1, 3, 4, 1, 2, 1)}, end: [2]int64{2, 1}, want: "Numbers", part: 2},
		"a number that nobody had":         {visits: []visit{did(1, 1, 2, 1, 1, 1), did(1, 3, 4, 3, 2, 1)}, end: [2]int64{2, 1}, want: "Numbers", part: 2},
		"an unknown one counted twice":     {visits: []visit{did(1, 1, 2, 1, 1, 1), open(1, 3), did(1, 5, 6, 4, 4, 1)}, end: [2]int64{4, 1}, want: "Numbers", part: 3},
		"an unknown one before it is sent": {visits: []visit{did(1, 1, 2, 2, 1, 1), open(1, 3)}, end: [2]int64{2, 1}, want: "Numbers", part: 2},
		"a total that stands still":        {visits: []visit{did(1, 1, 2, 1, 1, 1), did(2, 3, 4, 1, 1, 2)}, end: [2]int64{2, 2}, want: "Totals", part: 2},
		"a total that lacks a visit":       {visits: []visit{did(1, 1, 4, 1, 1, 2), did(2, 2, 4, 1, 1, 2), did(3, 5, 6, 1, 2, 3)}, end: [2]int64{3, 3}, want: "Totals", part: 1},
		"a batch too large for its total":  {visits: []visit{did(1, 1, 9, 1, 1, 2), did(2, 2, 9, 1, 1, 2)}, end: [2]int64{2, 2}, want: "Totals", part: 2},
		"a total above what was sent":      {visits: []visit{did(1, 1, 2, 1, 2, 1)}, end: [2]int64{2, 1}, want: "Totals", part: 1},
		"strangers visit too":              {visits: []visit{did(1, 1, 2, 1, 7, 4), did(1, 3, 4, 2, 9, 5)}, end: [2]int64{9, 5}, withStrangers: true},
		"a new visitor that is not added":  {visits: []visit{did(1, 1, 2, 1, 1, 1), did(2, 3, 4, 1, 2, 1)}, end: [2]int64{2, 2}, want: "Totals", part: 2},
		"a batch with two totals":          {visits: []visit{at(1, did(1, 1, 9, 1, 2, 1)), did(2, 2, 9, 1, 2, 2)}, end: [2]int64{2, 2}, want: "Totals", part: 2},
		"places of an unknown new visitor": {visits: []visit{open(1, 1), did(2, 2, 3, 1, 2, 2), did(3, 4, 5, 1, 3, 3), did(1, 6, 7, 2, 4, 3)}, end: [2]int64{4, 3}},
		"one place for a batch":            {visits: []visit{did(1, 1, 9, 1, 2, 2), did(2, 2, 9, 1, 2, 2)}, end: [2]int64{2, 2}, want: "Places", part: 2},
		"a place that was taken before":    {visits: []visit{did(1, 1, 2, 1, 1, 1), at(1, did(2, 3, 4, 1, 2, 2))}, end: [2]int64{2, 2}, want: "Places", part: 1},
		"a place above all visitors":       {visits: []visit{at(2, did(1, 1, 2, 1, 1, 1))}, end: [2]int64{1, 1}, want: "Places", part: 1},
		"a new visitor without a place":    {visits: []visit{at(0, did(1, 1, 2, 1, 1, 1))}, end: [2]int64{1, 1}, want: "Places", part: 1},
		"a stale read": {visits: []visit{did(1, 1, 2, 1, 1, 1)}, reads: []read{{path: "/api/stats", call: 3, ret: 4, visits: 0, visitors: 1}},
			end: [2]int64{1, 1}, want: "Reads", part: 1},
		"a stale badge of visitors": {visits: []visit{did(1, 1, 2, 1, 1, 1)}, reads: []read{{path: "/badge.json?show=visitors", call: 3, ret: 4, visits: -1, visitors: 0}},
			end: [2]int64{1, 1}, want: "Reads", part: 1},
		"a read that knows more than was sent": {visits: []visit{did(1, 3, 4, 1, 1, 1)}, reads: []read{{path: "/api/stats", call: 1, ret: 2, visits: 1, visitors: 0}},
			end: [2]int64{1, 1}, want: "Reads"},
		"a total that is not the rows' sum": {visits: []visit{did(1, 1, 2, 1, 1, 1), open(1, 3)}, end: [2]int64{2, 1}, want: "Sums"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHistory(1)
			h.alone = !tt.withStrangers
			h.visits, h.reads = tt.visits, tt.reads
			h.end = read{path: "/api/stats", call: 100, ret: 101, visits: tt.end[0], visitors: tt.end[1]}
			h.endDays = tt.end[0]
			bad := h.check()
			if tt.want == "" {
				require.Empty(t, bad)
				return
			}
			var names []string
			for _, b := range bad {
				names = append(names, b.invariant)
				if b.invariant == tt.want && !slices.Contains(names[:len(names)-1], tt.want) {
					assert.Len(t, b.visits, tt.part)
				}
			}
			assert.Contains(t, names, tt.want)
			path := t.TempDir() + "/history.html"
			require.NoError(t, h.draw(path, bad))
			assert.FileExists(t, path)
		})
	}
}

// Visits that may have been counted leave the search many orders. It finds one
// all the same, and finds that there is none.
func TestManyOpenVisits(t *testing.T) {
	t.Parallel()
	for _, doubled := range []bool{false, true} {
		h := newHistory(1)
		number := int64(0)
		for i := range int64(3000) {
			v := visit{call: 10 * i, ret: 10*i + 15, client: int(i % 2)}
			switch {
			case i%50 == 0 && i < 800: // of these 16 each second one is counted
				v.outcome, v.ret = unknown, never
				number += i / 50 % 2
			case doubled && i == 1501:
				v.number = number
			default:
				number++
				v.number = number
			}
			h.visits = append(h.visits, v)
		}
		began := time.Now()
		bad := h.checkVisitors()
		assert.Less(t, time.Since(began), 3*searchLimit)
		if doubled {
			require.Len(t, bad, 1)
			assert.Less(t, len(bad[0].visits), 60)
		} else {
			require.Empty(t, bad)
		}
	}
}

func TestReadPage(t *testing.T) {
	t.Parallel()
	const below = `</h1><ul class="totals"><li><b>1,234</b> visitors<li><b>5,678</b> visits<li><b>12</b> visits today</ul><td>9 visits`
	tests := map[string]struct {
		page          string
		number, place int64
	}{
		"again":             {page: `<h1 class="w5">You have visited this page <strong>1,001</strong> times.` + below, number: 1001},
		"first":             {`<h1>You are visitor <strong>1,234</strong>.` + below, 1, 1234},
		"first, then again": {`<h1>You are visitor <strong>1,234.</strong></h1><p>You have visited this page <strong>1</strong> time.` + below, 1, 1234},
		"first, as a visit": {page: `<h1>You have visited this page <strong>1</strong> time.` + below, number: 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var v visit
			require.NoError(t, v.readPage(tt.page))
			assert.Equal(t, visit{number: tt.number, place: tt.place, visits: 5678, visitors: 1234}, v)
		})
	}
	require.Error(t, (&visit{}).readPage(`<h1>The database does not answer.</h1>`))
}
