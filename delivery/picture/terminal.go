package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// makeTerminal makes docs/deploy.svg, what an upgrade of two hosts looks like, from the log
// that TestService (make e2e) has left of it: the plays, the tasks of the last one, and
// what it says in the end, broken after its semicolons.
func makeTerminal(context.Context) error {
	logs, err := filepath.Glob("e2e/out/*-TestService-DeployUnderLoad.log")
	if err != nil || len(logs) == 0 {
		return errors.Join(err, errors.New("there is no log; run make e2e PART=deploy first"))
	}
	log, err := os.ReadFile(logs[0])
	if err != nil {
		return err
	}
	lines := []string{"$ ansible-playbook deploy.yml " + regexp.MustCompile(`-e version=\S+`).FindString(string(log)), ""}
	var play, said string
	for line := range strings.Lines(string(log)) {
		line = strings.TrimRight(line, " *\n")
		switch {
		case strings.HasPrefix(line, "PLAY "):
			play = line
			if play == "PLAY RECAP" {
				lines = append(lines, "", "    "+strings.TrimPrefix(said, " msg: |- "), "")
			}
			lines = append(lines, play)
		case play == "PLAY [Replace the release]" && strings.HasPrefix(line, "TASK ["):
			lines = append(lines, line)
		case strings.HasPrefix(line, "    "):
			said += " " + strings.TrimSpace(line)
		case play == "PLAY RECAP" && strings.Contains(line, "unreachable="):
			if !strings.Contains(line, "failed=0 ") {
				return fmt.Errorf("the run in %s failed: %s", logs[0], line)
			}
			lines = append(lines, line[:strings.Index(line, "skipped=")])
		}
	}
	if play != "PLAY RECAP" || !strings.Contains(said, " -> ") {
		return fmt.Errorf("%s ends before the recap, or replaces nothing", logs[0])
	}
	lines = strings.Split(strings.ReplaceAll(strings.Join(lines, "\n"), "; ", ";\n    "), "\n")

	const lineHeight, margin = 19, 16
	var svg bytes.Buffer
	height := 2*margin + lineHeight*len(lines)
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" width="720" height="%d" viewBox="0 0 720 %d" role="img"><title>deploy.yml on two hosts</title>`+"\n", height, height)
	fmt.Fprintf(&svg, `<rect width="100%%" height="100%%" rx="8" fill="#131008"/><g font-family="ui-monospace,Menlo,Consolas,DejaVu Sans Mono,monospace" font-size="13" fill="#f4ead2">`+"\n")
	for i, line := range lines {
		fmt.Fprintf(&svg, `<text x="%d" y="%d">%s</text>`+"\n", margin, margin+lineHeight*(i+1)-6, strings.ReplaceAll(html.EscapeString(line), " ", "\u00a0"))
	}
	svg.WriteString("</g></svg>\n")
	return os.WriteFile("docs/deploy.svg", svg.Bytes(), 0o644)
}
