package main

import (
	"fmt"
	"sync/atomic"
	"time"
)

// outcome is what a visitor learned of a visit.
type outcome uint8

const (
	confirmed outcome = iota // answered with its number
	unknown                  // may have been counted: said so, cut off, or given up by the client
	refused                  // certainly not counted: said so, or never sent
)

// never is the end of a visit that may still be counted at any time.
const never = int64(1) << 62

// visit is one GET of the page. Times are nanoseconds since the run began.
type visit struct {
	visitor, client, instance int
	call, ret                 int64 // ret is never where the outcome is unknown
	outcome                   outcome
	number                    int64 // which of the visitor's visits it was
	place                     int64 // of a new visitor: which of all visitors; 0: not shown
	visits, visitors          int64 // the totals beside it
}

func (v visit) String() string {
	who := fmt.Sprintf("visitor %d at instance %d, %s to ", v.visitor, v.instance, clock(v.call))
	switch v.outcome {
	case confirmed:
		what := fmt.Sprintf("visit %d of this visitor", v.number)
		if v.place != 0 {
			what = fmt.Sprintf("visitor %d of all", v.place)
		}
		return who + fmt.Sprintf("%s: %s; totals: %d visits, %d visitors", clock(v.ret), what, v.visits, v.visitors)
	case unknown:
		return who + "…: may have been counted"
	}
	return who + clock(v.ret) + ": not counted"
}

// read is one answer that shows totals without a visit; what it does not show
// is -1.
type read struct {
	path             string
	instance         int
	call, ret        int64
	visits, visitors int64
}

func (r read) String() string {
	return fmt.Sprintf("%s at instance %d, %s to %s: %d visits, %d visitors", r.path, r.instance, clock(r.call), clock(r.ret), r.visits, r.visitors)
}

func clock(ns int64) string { return fmt.Sprintf("%.6f s", float64(ns)/1e9) }

// interval is a part of the run.
type interval struct{ from, to int64 }

// history is what was asked and answered during a run.
type history struct {
	began        time.Time
	alone        bool  // nobody else visits: totals have an upper bound
	visits0      int64 // totals before the run
	visitors0    int64
	days0        int64 // the sum of the days before the run
	visits       []visit
	reads        []read
	skewed       []interval // while the instances were on different days
	end          read       // the totals after the run, when all visits have ended
	endDays      int64      // the sum of the days then
	crashed      string     // which instance ended by itself; empty: none
	recount      string     // what the program's own recount says against its totals; empty: nothing
	lastOf       []atomic.Int64
	confirmedAll atomic.Int64
	unknownAll   atomic.Int64
}

func newHistory(instances int) *history {
	return &history{began: time.Now(), lastOf: make([]atomic.Int64, instances)}
}

func (h *history) now() int64 { return int64(time.Since(h.began)) }

// noted tells the faults how the count goes on.
func (h *history) noted(v visit) {
	switch v.outcome {
	case confirmed:
		h.confirmedAll.Add(1)
		last := &h.lastOf[v.instance]
		for {
			old := last.Load()
			if v.call <= old || last.CompareAndSwap(old, v.call) {
				break
			}
		}
	case unknown:
		h.unknownAll.Add(1)
	}
}

// isSkewed reports whether the instances were on different days at some time
// between from and to.
func (h *history) isSkewed(from, to int64) bool {
	for _, s := range h.skewed {
		if from <= s.to && s.from <= to {
			return true
		}
	}
	return false
}
