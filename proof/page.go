package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// What this program relies on in the page. A visit that was not counted says
// so; the first <strong> is how often the visitor has come, or on a first visit
// ("You are visitor N") the visitor's place among all; the totals are the first
// numbers before the words "visitors" and "visits".
var (
	notCounted = "was not counted"
	strong     = regexp.MustCompile(`([^<>]*)<strong[^>]*>\s*([0-9,]+)\.?\s*</strong>`)
	tag        = regexp.MustCompile(`<[^>]*>`)
	total      = regexp.MustCompile(`([0-9][0-9,]*)\s+(visits?|visitors?)\b(\s+today)?`)
)

// readPage adds to a visit what the page says to a visitor who was counted.
func (v *visit) readPage(page string) error {
	match := strong.FindStringSubmatch(page)
	if match == nil {
		return fmt.Errorf("the page shows no number in <strong>")
	}
	shown, err := readNumber(match[2])
	if err != nil {
		return err
	}
	if v.number = shown; strings.Contains(strings.ToLower(match[1]), "visitor") {
		v.number, v.place = 1, shown
	}
	v.visits, v.visitors = -1, -1
	for _, m := range total.FindAllStringSubmatch(tag.ReplaceAllString(page, " "), -1) {
		n, err := readNumber(m[1])
		switch {
		case err != nil:
			return err
		case v.visitors < 0 && strings.HasPrefix(m[2], "visitor"):
			v.visitors = n
		case v.visits < 0 && !strings.HasPrefix(m[2], "visitor") && m[3] == "":
			v.visits = n
		}
	}
	if v.visits < 0 || v.visitors < 0 {
		return fmt.Errorf("the page does not show both totals")
	}
	return nil
}

func readNumber(s string) (int64, error) {
	return strconv.ParseInt(strings.ReplaceAll(s, ",", ""), 10, 64)
}

// The paths that show totals, and how each is read.
var readings = []struct {
	path string
	read func(body []byte) (visits, visitors int64, err error)
}{
	{"/api/stats", readStats},
	{"/badge.json?show=visits", func(body []byte) (int64, int64, error) { n, err := readBadge(body); return n, -1, err }},
	{"/badge.json?show=visitors", func(body []byte) (int64, int64, error) { n, err := readBadge(body); return -1, n, err }},
	{"/badge.svg?show=visits", func(body []byte) (int64, int64, error) { n, err := readSVG(body); return n, -1, err }},
	{daysPath, func(body []byte) (int64, int64, error) { n, err := readDays(body); return n, -1, err }},
}

// daysPath answers every day, whose visits add up to the total.
const daysPath = "/api/stats.csv"

func readStats(body []byte) (visits, visitors int64, err error) {
	type day struct {
		Visits      int64 `json:"visits"`
		Visitors    int64 `json:"visitors"`
		NewVisitors int64 `json:"new_visitors"`
	}
	var stats struct {
		day
		Today day   `json:"today"`
		Days  []day `json:"days"`
	}
	if err := json.Unmarshal(body, &stats); err != nil {
		return 0, 0, err
	}
	var sum int64
	for _, d := range stats.Days {
		sum += d.Visits
	}
	if sum > stats.Visits || len(stats.Days) == 0 || stats.Days[len(stats.Days)-1] != stats.Today {
		return 0, 0, fmt.Errorf("the days of /api/stats do not agree with its totals: %s", body)
	}
	return stats.Visits, stats.Visitors, nil
}

func readBadge(body []byte) (int64, error) {
	var badge struct {
		Message string `json:"message"`
	}
	if err := json.Unmarshal(body, &badge); err != nil {
		return 0, err
	}
	return readNumber(badge.Message)
}

var digits = regexp.MustCompile(`>\s*([0-9][0-9,]*)\s*<`)

// readSVG returns -1 where the picture says that there is no number now.
func readSVG(body []byte) (int64, error) {
	if strings.Contains(string(body), "unavailable") {
		return -1, nil
	}
	match := digits.FindSubmatch(body)
	if match == nil {
		return 0, fmt.Errorf("the badge shows no number")
	}
	return readNumber(string(match[1]))
}

func readDays(body []byte) (sum int64, err error) {
	rows, err := csv.NewReader(strings.NewReader(string(body))).ReadAll()
	if err != nil {
		return 0, err
	}
	for i, row := range rows {
		if i == 0 {
			continue // the heading
		}
		n, err := readNumber(row[1])
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
