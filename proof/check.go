package main

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// violation is a part of a history that cannot be, as small as it was found.
type violation struct {
	invariant string // its name in docs/proof.md
	what      string
	visits    []visit
	reads     []read
	info      porcupine.LinearizationInfo
	model     porcupine.Model
}

// counter is what one visitor's visits are checked against: a number that each
// visit raises by one and answers with. A visit that may have been counted
// raises it too, at any time after it was sent; that it was not counted is the
// same as being counted after everything that was seen. It cannot have a number
// that another visit was told, which is all that the search needs to know to be
// quick.
func counter(from int64, visits []visit) porcupine.Model {
	told := map[int64]bool{}
	for _, v := range visits {
		if v.outcome == confirmed {
			told[v.number] = true
		}
	}
	return porcupine.Model{
		Init: func() any { return from },
		Step: func(state, _, output any) (bool, any) {
			before, v := state.(int64), output.(visit)
			switch {
			case v.outcome == unknown: // it changes nothing to count it before any number
				return before != anyNumber && !told[before+1], before + 1
			}
			return before == anyNumber || v.number == before+1, v.number
		},
		DescribeOperation: func(_, output any) string {
			v := output.(visit)
			if v.outcome == unknown {
				return fmt.Sprintf("visitor %d → may have been counted", v.visitor)
			}
			return fmt.Sprintf("visitor %d → %d", v.visitor, v.number)
		},
		DescribeState: func(state any) string {
			if state == anyNumber {
				return "any number"
			}
			return fmt.Sprint(state)
		},
	}
}

// anyNumber is the state before a part of a history whose beginning was cut off.
const anyNumber = int64(-1)

func operations(visits []visit) (ops []porcupine.Operation) {
	for _, v := range visits {
		ops = append(ops, porcupine.Operation{ClientId: v.client, Call: v.call, Return: v.ret, Output: v})
	}
	return ops
}

// searchLimit is how long a history of one visitor is searched. One that is as
// promised takes milliseconds: its numbers leave no choice.
const searchLimit = 10 * time.Second

// checkVisitors checks that each visitor's numbers are those of some order of
// the visits in which each stands between its request and its answer.
func (h *history) checkVisitors() (bad []violation) {
	of := map[int][]visit{}
	for _, v := range h.visits {
		if v.outcome != refused {
			of[v.visitor] = append(of[v.visitor], v)
		}
	}
	for visitor, visits := range of {
		slices.SortFunc(visits, func(a, b visit) int { return cmp.Compare(a.call, b.call) })
		if porcupine.CheckOperationsTimeout(counter(0, visits), operations(visits), searchLimit) == porcupine.Ok {
			continue
		}
		bad = append(bad, smallest(visitor, visits))
		if len(bad) == maxReported {
			break
		}
	}
	return bad
}

// maxReported is how many violations of an invariant are reported.
const maxReported = 5

// smallest returns the shortest part of a visitor's visits that cannot be,
// whatever number they begin at.
func smallest(visitor int, visits []visit) violation {
	bad := violation{invariant: "Numbers", what: fmt.Sprintf("no order of the visits of visitor %d gives these numbers", visitor)}
	began := time.Now()
search:
	for size := 2; size < 2*len(visits); size += max(1, size/2) {
		size := min(size, len(visits))
		for i := range len(visits) - size + 1 {
			part := window(visits, i, i+size)
			model := counter(anyNumber, part)
			result, info := porcupine.CheckOperationsVerbose(model, operations(part), time.Second)
			if result == porcupine.Illegal {
				bad.visits, bad.model, bad.info = part, model, info
				return bad
			}
			if time.Since(began) > searchLimit {
				break search
			}
		}
	}
	bad.visits, bad.model = visits, counter(0, visits)
	_, bad.info = porcupine.CheckOperationsVerbose(bad.model, operations(visits), searchLimit)
	return bad
}

// window returns visits[from:to], and with them what can stand among them in the
// order: of these it is left open whether they do. Of those that are open since
// before, more than there are numbers to fill make no difference.
func window(visits []visit, from, to int) []visit {
	part := slices.Clone(visits[from:to])
	begin, end, least, most, told := part[0].call, int64(0), never, int64(0), 0
	for _, v := range part {
		if v.outcome == confirmed {
			end, least, most = max(end, v.ret), min(least, v.number), max(most, v.number)
			told++
		}
	}
	open := most - least + 1 - int64(told)
	for i, v := range visits {
		switch {
		case i >= from && i < to || v.ret < begin || v.call > end:
		case i < from && v.outcome == unknown && open <= 0:
		default:
			if i < from && v.outcome == unknown {
				open--
			}
			v.outcome, v.ret = unknown, never
			part = append(part, v)
		}
	}
	return part
}

// checkTotals checks every total that was shown against real time.
func (h *history) checkTotals() (bad []violation) {
	report := func(invariant, what string, visits []visit, reads ...read) {
		n := 0
		for _, b := range bad {
			if b.invariant == invariant {
				n++
			}
		}
		if n < maxReported {
			bad = append(bad, violation{invariant: invariant, what: what, visits: visits, reads: reads})
		}
	}
	var done, sent []visit // confirmed, by the time of the answer; all that may count, by that of the request
	for _, v := range h.visits {
		if v.outcome != refused {
			sent = append(sent, v)
		}
		if v.outcome == confirmed {
			done = append(done, v)
		}
	}
	slices.SortFunc(done, func(a, b visit) int { return cmp.Compare(a.ret, b.ret) })
	slices.SortFunc(sent, func(a, b visit) int { return cmp.Compare(a.call, b.call) })
	reads := slices.Clone(h.reads)
	if h.crashed == "" {
		reads = append(reads, h.end)
	}
	slices.SortFunc(reads, func(a, b read) int { return cmp.Compare(a.call, b.call) })

	// From below: what was confirmed before is in it.
	var top, topVisitors visit // of those before, the one with the largest totals
	count, before, seen := h.visits0, 0, map[int]bool{}
	advance := func(call int64) {
		for ; before < len(done) && done[before].ret < call; before++ {
			v := done[before]
			count++
			seen[v.visitor] = true
			if v.visits > top.visits {
				top = v
			}
			if v.visitors > topVisitors.visitors {
				topVisitors = v
			}
		}
	}
	next := 0
	readsBefore := func(call int64) {
		for ; next < len(reads) && reads[next].call <= call; next++ {
			r := reads[next]
			advance(r.call)
			if r.path == daysPath && h.isSkewed(r.call, r.ret) {
				continue // a late clock's days end a day earlier
			}
			missing := h.visits0 - h.days0 // visits that belong to no day
			if r.path != daysPath {
				missing = 0
			}
			if r.visits >= 0 && r.visits+missing < max(count, top.visits) {
				report("Reads", fmt.Sprintf("shows %d visits, although %d were confirmed before it was asked for", r.visits+missing, max(count, top.visits)), []visit{top}, r)
			}
			if r.visitors >= 0 && r.visitors < max(h.visitors0+int64(len(seen)), topVisitors.visitors) {
				report("Reads", fmt.Sprintf("shows %d visitors, although there were %d before it was asked for", r.visitors, max(h.visitors0+int64(len(seen)), topVisitors.visitors)), []visit{topVisitors}, r)
			}
		}
	}
	for _, v := range sent {
		readsBefore(v.call)
		advance(v.call)
		if v.outcome != confirmed {
			continue
		}
		if v.visits <= top.visits {
			report("Totals", "the later visit shows no larger total", []visit{top, v})
		}
		if v.visits < count+1 {
			report("Totals", fmt.Sprintf("shows %d visits, although %d were confirmed before it was sent", v.visits, count), []visit{v})
		}
		least := h.visitors0 + int64(len(seen))
		if !seen[v.visitor] {
			least++
		}
		if least = max(least, topVisitors.visitors); v.visitors < least {
			report("Totals", fmt.Sprintf("shows %d visitors, although it made %d", v.visitors, least), []visit{topVisitors, v})
		}
	}
	readsBefore(never)

	// Each batch raises the total by all its visits. Its new visitors have the
	// places that it adds, each one of them: as later batches have larger totals,
	// who comes later also has a larger place.
	byTotal := slices.Clone(done)
	slices.SortFunc(byTotal, func(a, b visit) int { return cmp.Compare(a.visits, b.visits) })
	last, lastVisitors := h.visits0, h.visitors0
	placed := map[int64]visit{}
	for group := range chunks(byTotal) {
		total, visitors := group[0].visits, group[0].visitors
		if total-last < int64(len(group)) {
			report("Totals", fmt.Sprintf("%d visits were answered with the total %d, which is only %d above the one before", len(group), total, total-last), group)
		}
		for _, v := range group {
			if v.visitors != visitors {
				report("Totals", fmt.Sprintf("with the total of %d visits there are %d visitors, and %d", total, visitors, v.visitors), []visit{group[0], v})
			}
			if v.number > 1 {
				continue
			}
			if v.place <= lastVisitors || v.place > v.visitors {
				report("Places", fmt.Sprintf("visitor %d of all is new among %d visitors, of whom %d were there before", v.place, v.visitors, lastVisitors), []visit{v})
			}
			if other, taken := placed[v.place]; taken {
				report("Places", fmt.Sprintf("two visitors are visitor %d of all", v.place), []visit{other, v})
			}
			placed[v.place] = v
		}
		last, lastVisitors = total, max(lastVisitors, visitors)
	}

	if h.alone {
		h.checkAbove(done, sent, reads, report)
	}
	return bad
}

// chunks yields the parts of visits with the same total.
func chunks(visits []visit) func(func([]visit) bool) {
	return func(yield func([]visit) bool) {
		for len(visits) > 0 {
			n := 1
			for n < len(visits) && visits[n].visits == visits[0].visits {
				n++
			}
			if !yield(visits[:n]) {
				return
			}
			visits = visits[n:]
		}
	}
}

// checkAbove checks that no total is above what had been sent.
func (h *history) checkAbove(done, sent []visit, reads []read, report func(string, string, []visit, ...read)) {
	var visits []int64 // the times at which one more may have been counted
	var visitors []int64
	seen := map[int]bool{}
	for _, v := range sent {
		visits = append(visits, v.call)
		if !seen[v.visitor] {
			seen[v.visitor] = true
			visitors = append(visitors, v.call)
		}
	}
	until := func(times []int64, ret int64) int64 {
		n, _ := slices.BinarySearch(times, ret)
		return int64(n)
	}
	for _, v := range done {
		if most := h.visits0 + until(visits, v.ret); v.visits > most {
			report("Totals", fmt.Sprintf("shows %d visits, although only %d had been sent", v.visits, most), []visit{v})
		}
		if most := h.visitors0 + until(visitors, v.ret); v.visitors > most {
			report("Totals", fmt.Sprintf("shows %d visitors, although only %d had come", v.visitors, most), []visit{v})
		}
	}
	for _, r := range reads {
		most := h.visits0
		if r.path == daysPath {
			most = h.days0
		}
		if most += until(visits, r.ret); r.visits > most {
			report("Reads", fmt.Sprintf("shows %d visits, although only %d had been sent", r.visits, most), nil, r)
		}
		if most := h.visitors0 + until(visitors, r.ret); r.visitors > most {
			report("Reads", fmt.Sprintf("shows %d visitors, although only %d had come", r.visitors, most), nil, r)
		}
	}
}

// checkEnd checks the totals at the end against the visitors' last numbers:
// their rows.
func (h *history) checkEnd() (bad []violation) {
	if h.crashed != "" { // then nothing was awaited at the end
		return []violation{{invariant: "Life", what: h.crashed}}
	}
	if h.recount != "" {
		bad = append(bad, violation{invariant: "Sums", what: h.recount})
	}
	if !h.alone {
		return nil
	}
	rows := map[int]int64{}
	for _, v := range h.visits {
		if v.outcome == confirmed {
			rows[v.visitor] = max(rows[v.visitor], v.number)
		}
	}
	var sum int64
	for _, n := range rows {
		sum += n
	}
	if got := h.end.visits - h.visits0; got != sum {
		bad = append(bad, violation{invariant: "Sums", reads: []read{h.end},
			what: fmt.Sprintf("the total grew by %d visits, the visitors' own numbers add up to %d", got, sum)})
	}
	if got := h.end.visitors - h.visitors0; got != int64(len(rows)) {
		bad = append(bad, violation{invariant: "Sums", reads: []read{h.end},
			what: fmt.Sprintf("the total grew by %d visitors, there were %d", got, len(rows))})
	}
	if got := h.endDays - h.days0; got != sum {
		bad = append(bad, violation{invariant: "Sums", reads: []read{h.end},
			what: fmt.Sprintf("the days grew by %d visits, the visitors' own numbers add up to %d", got, sum)})
	}
	return bad
}

func (h *history) check() []violation {
	return slices.Concat(h.checkTotals(), h.checkEnd(), h.checkVisitors())
}

// draw writes a picture of the history to a file: of the first violation, or
// of the visitor with the most visits that may have been counted.
func (h *history) draw(path string, bad []violation) error {
	if len(bad) > 0 && bad[0].model.Init == nil && len(bad[0].visits) > 0 {
		bad[0].model = later
		_, bad[0].info = porcupine.CheckOperationsVerbose(later, operations(bad[0].visits), time.Second)
	}
	if len(bad) > 0 && bad[0].model.Init != nil {
		return porcupine.VisualizePath(bad[0].model, bad[0].info, path)
	}
	of, open := map[int][]visit{}, map[int]int{}
	most := -1
	for _, v := range h.visits {
		if v.outcome == refused {
			continue
		}
		of[v.visitor] = append(of[v.visitor], v)
		if v.outcome == unknown {
			open[v.visitor]++
		}
		if len(of[v.visitor]) <= 400 && (most < 0 || open[v.visitor] > open[most]) {
			most = v.visitor
		}
	}
	if most < 0 {
		return os.WriteFile(path, []byte("<!doctype html><title>footfall</title><p>There were no visits.\n"), 0o644)
	}
	model := counter(0, of[most])
	_, info := porcupine.CheckOperationsVerbose(model, operations(of[most]), searchLimit)
	return porcupine.VisualizePath(model, info, path)
}

// later draws visits by their totals.
var later = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, _, output any) (bool, any) {
		v := output.(visit)
		return v.visits > state.(int64), v.visits
	},
	DescribeOperation: func(_, output any) string {
		v := output.(visit)
		return fmt.Sprintf("visitor %d → total of %d visits, %d visitors", v.visitor, v.visits, v.visitors)
	},
	DescribeState: func(state any) string { return fmt.Sprintf("%d visits", state) },
}
