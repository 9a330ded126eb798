package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// makeTerminal makes docs/deploy.svg, what a deployment looks like, from the log
// that TestService (make e2e) has left of site.yml on two bare hosts. The
// lines of the tasks are left out: "…".
func makeTerminal(context.Context) error {
	logs, err := filepath.Glob("e2e/out/*-TestService.log")
	if err != nil || len(logs) == 0 {
		return errors.Join(err, errors.New("there is no log; run make e2e PART=service first"))
	}
	log, err := os.ReadFile(logs[0])
	if err != nil {
		return err
	}
	lines := []string{"$ ansible-playbook -i inventory/static.yml site.yml -e app_image_archive=…", ""}
	var play string
	var said []string // by the last task, which is shown as it is
	tasks := 0
	end := func(next string) {
		if tasks > 0 {
			lines = append(lines, fmt.Sprintf("%-46s … %2d task%s", play, tasks, map[bool]string{true: "s"}[tasks > 1]))
		}
		lines = append(lines, said...)
		play, tasks, said = next, 0, nil
	}
	var recap bool
	for line := range strings.Lines(string(log)) {
		line = strings.TrimRight(line, " \n")
		switch name, isPlay := strings.CutPrefix(line, "PLAY ["); {
		case isPlay:
			end("PLAY [" + strings.TrimRight(name, "* "))
		case strings.HasPrefix(line, "TASK ["):
			tasks++
		case play == "PLAY [Say where the page is]" && strings.HasPrefix(line, "    "):
			said = append(said, line)
		case strings.HasPrefix(line, "PLAY RECAP"):
			end("")
			recap = true
			lines = append(lines, "", "PLAY RECAP")
		case strings.HasPrefix(line, "TASKS RECAP"):
			recap = false
		case recap && strings.Contains(line, "unreachable="):
			if !strings.Contains(line, "failed=0 ") {
				return fmt.Errorf("the run in %s failed: %s", logs[0], line)
			}
			lines = append(lines, line[:strings.Index(line, "skipped=")])
		}
	}
	if !slices.Contains(lines, "PLAY RECAP") {
		return fmt.Errorf("%s ends before the recap", logs[0])
	}

	const lineHeight, margin = 19, 16
	var svg bytes.Buffer
	height := 2*margin + lineHeight*len(lines)
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" width="720" height="%d" viewBox="0 0 720 %d" role="img"><title>site.yml on two bare hosts</title>`+"\n", height, height)
	fmt.Fprintf(&svg, `<rect width="100%%" height="100%%" rx="8" fill="#131008"/><g font-family="ui-monospace,Menlo,Consolas,DejaVu Sans Mono,monospace" font-size="13" fill="#f4ead2">`+"\n")
	for i, line := range lines {
		fmt.Fprintf(&svg, `<text x="%d" y="%d">%s</text>`+"\n", margin, margin+lineHeight*(i+1)-6, strings.ReplaceAll(html.EscapeString(line), " ", "\u00a0"))
	}
	svg.WriteString("</g></svg>\n")
	return os.WriteFile("docs/deploy.svg", svg.Bytes(), 0o644)
}
