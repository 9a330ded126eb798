package picture

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestChart(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		days        int
		visits      []int64
		path, inner string
		busiest     Label
		firstDay    string
		today       Label
		width       int
	}{
		"none": {30, nil, "M0 100", "M0 100",
			Label{50, "middle", "no visits in these 30 days"}, "1 Feb", Label{100, "end", "today, 2 Mar: 0"}, 298},
		"only today": {30, []int64{5}, "M0 100h290v-100h8v100", "M0 100h290v-60h8v60",
			Label{100, "end", "busiest: 5 today"}, "1 Feb", Label{100, "end", "today, 2 Mar: 5"}, 298},
		"the day before": {30, []int64{4, 2}, "M0 100h280v-100h8v100h2v-50h8v50", "M0 100h280v-50h8v50h2v-25h8v25",
			Label{96, "end", "busiest: 4 on 1 Mar"}, "1 Feb", Label{100, "end", "today, 2 Mar: 2"}, 298},
		"one among many is seen": {30, []int64{1, 1_000_000}, "M0 100h280v-1h8v1h2v-100h8v100", "M0 100h280v-1h8v1h2v-50h8v50",
			Label{100, "end", "busiest: 1000000 today"}, "1 Feb", Label{100, "end", "today, 2 Mar: 1000000"}, 298},
		"beyond 32 bits": {30, []int64{1 << 62, 1 << 61}, "M0 100h280v-100h8v100h2v-50h8v50", "M0 100h280v-50h8v50h2v-25h8v25",
			Label{96, "end", "busiest: 4611686018427387904 on 1 Mar"}, "1 Feb", Label{100, "end", "today, 2 Mar: 2305843009213693952"}, 298},
		"the first of equals": {30, append([]int64{7, 7}, make([]int64, 27)...), "M0 100h10v-100h8v100h2v-100h8v100", "M0 100h10v-57h8v57h2v-57h8v57",
			Label{3, "start", "busiest: 7 on 2 Feb"}, "1 Feb", Label{100, "end", "today, 2 Mar: 0"}, 298},
		"the first day": {1, []int64{5}, "M0 100v-100h8v100", "M0 100v-60h8v60",
			Label{0, "start", "busiest: 5 today"}, "", Label{0, "start", "today, 2 Mar: 5"}, 68},
		"the fifth day": {5, []int64{4, 0, 0, 0, 2}, "M0 100v-100h8v100h32v-50h8v50", "M0 100v-50h8v50h32v-25h8v25",
			Label{0, "start", "busiest: 4 on 26 Feb"}, "", Label{70, "end", "today, 2 Mar: 2"}, 68},
		"the eighth day": {8, []int64{4, 0, 0, 0, 0, 0, 0, 2}, "M0 100v-100h8v100h62v-50h8v50", "M0 100v-50h8v50h62v-25h8v25",
			Label{0, "start", "busiest: 4 on 23 Feb"}, "23 Feb", Label{100, "end", "today, 2 Mar: 2"}, 78},
		"the second day": {2, []int64{3, 2}, "M0 100v-100h8v100h2v-66h8v66", "M0 100v-66h8v66h2v-33h8v33",
			Label{0, "start", "busiest: 3 on 1 Mar"}, "", Label{14, "start", "today, 2 Mar: 2"}, 68},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			visits := append(make([]int64, tt.days-len(tt.visits)), tt.visits...)
			var days []Day
			for i, n := range visits {
				days = append(days, Day{time.Date(2026, time.March, 3-tt.days+i, 0, 0, 0, 0, time.UTC), n, (n + 1) / 2})
			}
			c := NewChart(days, "71 visits", func(n int64) string { return fmt.Sprint(n) })
			assert.Equal(t, tt.path, c.Visits)
			assert.Equal(t, tt.inner, c.Visitors)
			assert.Equal(t, tt.busiest, c.Busiest)
			assert.Equal(t, tt.today, c.Today)
			assert.Equal(t, tt.firstDay, c.FirstDay)
			assert.Equal(t, tt.width, c.Width)
			assert.Equal(t, fmt.Sprintf("71 visits from %s to 2 Mar; %s; %s", ShortDate(days[0].Date), c.Busiest.Text, c.Today.Text), c.Words)
		})
	}
}
