package picture

import (
	"fmt"
	"time"
)

// Chart is days as bars, each with its visits and in them its visitors. The bars
// are stretched to the width of the window, so all text is outside of them.
type Chart struct {
	Width, Height    int    // of the view box that the paths are drawn in
	Visits, Visitors string // paths
	Words            string // all of it in a sentence
	FirstDay         string // "": today's label stands there
	Busiest, Today   Label
}

// Day is a bar of a chart.
type Day struct {
	Date             time.Time
	Visits, Visitors int64
}

// Label is a text at a place, in percent of the chart's width, with the
// text-anchor that keeps it inside.
type Label struct {
	X            int
	Anchor, Text string
}

const (
	barStep     = 10 // from one bar's left edge to the next one's
	barWidth    = 8
	chartHeight = 100 // of the highest bar
	week        = 7   // the least that the chart is wide: a single day is no wall
)

// NewChart draws days, of which the last is today; total is what their visits add up
// to, in words, and number writes one.
func NewChart(days []Day, total string, number func(int64) string) Chart {
	c := Chart{Width: max(len(days), week)*barStep - (barStep - barWidth), Height: chartHeight}
	last, busiest := len(days)-1, 0
	for i, d := range days {
		if d.Visits > days[busiest].Visits {
			busiest = i
		}
	}
	most, today := days[busiest], days[last]
	c.Visits = bars(days, most.Visits, func(d Day) int64 { return d.Visits })
	c.Visitors = bars(days, most.Visits, func(d Day) int64 { return d.Visitors })
	if len(days) >= week {
		c.FirstDay = ShortDate(days[0].Date)
	}
	c.Today = c.label(last, "today, "+ShortDate(today.Date)+": "+number(today.Visits))
	switch {
	case most.Visits == 0:
		c.Busiest = Label{50, "middle", "no visits in these 30 days"}
	case busiest == last:
		c.Busiest = c.label(busiest, "busiest: "+number(most.Visits)+" today")
	default:
		c.Busiest = c.label(busiest, "busiest: "+number(most.Visits)+" on "+ShortDate(most.Date))
	}
	c.Words = fmt.Sprintf("%s from %s to %s; %s; %s", total, ShortDate(days[0].Date), ShortDate(today.Date), c.Busiest.Text, c.Today.Text)
	return c
}

// bars draws one number of each day as a path. A day without any has no shape,
// and one among thousands is still to be seen.
func bars(days []Day, highest int64, of func(Day) int64) string {
	path := fmt.Appendf(nil, "M0 %d", chartHeight)
	gap := 0 // to the next bar; none behind the last, where an outline would draw it
	for _, d := range days {
		n := of(d)
		if n == 0 {
			gap += barStep
			continue
		}
		if gap > 0 {
			path = fmt.Appendf(path, "h%d", gap)
		}
		height := max(1, int(float64(n)/float64(highest)*chartHeight))
		path = fmt.Appendf(path, "v-%dh%dv%d", height, barWidth, height)
		gap = barStep - barWidth
	}
	return string(path)
}

// label puts text over or under the bar of day i.
func (c Chart) label(i int, text string) Label {
	if 2*i*barStep >= c.Width {
		return Label{100 * (i*barStep + barWidth) / c.Width, "end", text}
	}
	return Label{100 * i * barStep / c.Width, "start", text}
}

// ShortDate writes a day as the chart does.
func ShortDate(date time.Time) string { return date.Format("2 Jan") }
