// Command delivery checks the rules of this repository that no linter knows. Each broken one is printed as a
// sentence that says what to do, and the exit status is 1. `make lint` runs it.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

func main() {
	broken, err := check(".")
	if err != nil {
		fmt.Fprintln(os.Stderr, "delivery:", err)
		os.Exit(2)
	}
	for _, sentence := range broken {
		fmt.Fprintln(os.Stderr, sentence)
	}
	if len(broken) > 0 {
		os.Exit(1)
	}
}

// check returns a sentence for each rule that the repository at root breaks, or an error if it cannot be read.
func check(root string) ([]string, error) {
	var broken []string
	for _, rule := range []func(string) ([]string, error){version, versions, migrations, collections, workflows} {
		found, err := rule(root)
		if err != nil {
			return nil, err
		}
		broken = append(broken, found...)
	}
	return broken, nil
}

// versions: what several files must name is the same in all of them. Where a version is raised, the first file is edited first.
func versions(root string) ([]string, error) {
	var broken []string
	for _, v := range []struct {
		what   string
		places [][2]string // file and pattern; the first one says what is right
	}{
		{"the oldest PostgreSQL", [][2]string{
			{".github/workflows/check.yml", `postgres: \[(\d+),`},
			{"README.md", `PostgreSQL (\d+) or newer`},
			{"ansible/roles/settings/vars/main.yml", `postgres_version \| int >= (\d+)`},
		}},
		{"Debian's PostgreSQL", [][2]string{
			{"ansible/group_vars/all/defaults.yml", `(?m)^postgres_version: "(\d+)"`},
			{"compose.yaml", `image: postgres:(\d+)`},
			{"e2e/images/postgres/Dockerfile", `postgresql-(\d+)`},
		}},
		{"the fewest days that a certificate may have left", [][2]string{
			{"ansible/roles/monitoring/files/alerts.yml", `cert_expiry.* < (\d+) \* 86400`},
			{"ansible/MONITORING.md", `Less than (\d+) days are left`},
			{"ansible/roles/verify/tasks/main.yml", `-checkend {{ (\d+) \* 86400`},
			{"delivery/fleet.py", `RED_DAYS, .* = (\d+),`},
		}},
		{"Go", [][2]string{
			{"go.mod", `(?m)^toolchain go(\d+\.\d+\.\d+)$`},
			{"Dockerfile", `golang:(\d+\.\d+\.\d+) `},
		}},
	} {
		want := ""
		for _, place := range v.places {
			text, err := os.ReadFile(filepath.Join(root, place[0]))
			if err != nil {
				return nil, err
			}
			found := regexp.MustCompile(place[1]).FindAllStringSubmatch(string(text), -1)
			if found == nil {
				broken = append(broken, fmt.Sprintf("%s does not name %s: %s", place[0], v.what, place[1]))
			}
			for _, m := range found {
				if want == "" {
					want = m[1]
				}
				if m[1] != want {
					broken = append(broken, fmt.Sprintf("%s says that %s is %s, and %s that it is %s: write the same", place[0], v.what, m[1], v.places[0][0], want))
				}
			}
		}
	}
	return broken, nil
}

// semver is MAJOR.MINOR.PATCH[-PRERELEASE] of semver.org; without +BUILD, which a tag of an image cannot hold.
var semver = regexp.MustCompile(`^(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}(-((0|[1-9]\d*|\d*[A-Za-z-][\dA-Za-z-]*)(\.|$))+)?$`)

// version: version.txt holds a semantic version, and CHANGELOG.md says what is in it.
func version(root string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(root, "version.txt"))
	if err != nil {
		return nil, err
	}
	v := strings.TrimSuffix(string(text), "\n")
	if !semver.MatchString(v) || strings.HasSuffix(v, ".") {
		return []string{fmt.Sprintf("version.txt is %q: write a semantic version on one line, such as 1.4.0", v)}, nil
	}
	changes, err := os.ReadFile(filepath.Join(root, "CHANGELOG.md"))
	if err != nil {
		return nil, err
	}
	// A heading with a day, and at least one line of text before the next heading.
	entry := regexp.MustCompile(`(?m)^## \[` + regexp.QuoteMeta(v) + `\] - \d{4}-\d\d-\d\d\n+(### .*\n+)?[^#\s\[]`)
	if !entry.Match(changes) {
		return []string{fmt.Sprintf(`CHANGELOG.md does not say what is in %s: add a section "## [%[1]s] - YYYY-MM-DD" with what changed`, v)}, nil
	}
	return nil, nil
}

// migrations: no file in sql/ differs from the last release, since databases have it applied as it was.
func migrations(root string) ([]string, error) {
	if _, err := os.Stat(filepath.Join(root, ".git")); os.IsNotExist(err) {
		return nil, nil // an unpacked archive: nothing is released from it
	}
	if shallow, err := git(root, "rev-parse", "--is-shallow-repository"); err != nil {
		return nil, err
	} else if shallow == "true" {
		return []string{"this clone has no history to compare the migrations with: run git fetch --unshallow --tags"}, nil
	}
	release, err := git(root, "describe", "--tags", "--abbrev=0", "--match=v[0-9]*")
	if err != nil {
		return nil, nil // nothing was released yet
	}
	// Added files are what may be there; a renamed one is a deleted and an added one.
	changed, err := git(root, "diff", "--name-only", "--no-renames", "--diff-filter=a", release, "--", "sql/*.sql")
	var broken []string
	for file := range strings.FieldsSeq(changed) {
		broken = append(broken, fmt.Sprintf("%s was edited after %s released it: "+
			"take it back with git checkout %[2]s -- %[1]s, and write your change as a new file with the next number", file, release))
	}
	return broken, err
}

func git(root string, args ...string) (string, error) {
	out, err := exec.Command("git", append([]string{"-C", root}, args...)...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = errors.New(strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return "", fmt.Errorf("git %s in %s: %w", strings.Join(args, " "), root, err)
	}
	return strings.TrimSpace(string(out)), nil
}

var module = regexp.MustCompile(`(?m)^\s+(?:- )?([a-z]+\.[a-z]+)\.[a-z0-9_]+:`)

// collections: what playbooks use and ansible-core does not have is in requirements.yml, for controllers without Debian's ansible.
func collections(root string) ([]string, error) {
	required, err := os.ReadFile(filepath.Join(root, "ansible/requirements.yml"))
	if err != nil {
		return nil, err
	}
	var broken []string
	err = filepath.WalkDir(filepath.Join(root, "ansible"), func(path string, _ os.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".yml" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range module.FindAllStringSubmatch(string(text), -1) {
			if m[1] != "ansible.builtin" && !strings.Contains(string(required), "name: "+m[1]+"\n") {
				broken = append(broken, fmt.Sprintf("%s uses %s, which ansible/requirements.yml does not name: add it", strings.TrimPrefix(path, root+"/"), m[1]))
			}
		}
		return err
	})
	return broken, err
}

var (
	target = regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*):`)
	run    = regexp.MustCompile(`\brun["']?\s*:`)
	makes  = regexp.MustCompile(`^\s*(?:- )?run: make ([a-z0-9-]+)$`)
	// A variable of the repository, of the organisation, or of a job's environment: vars.NAME or vars['NAME'].
	variable = regexp.MustCompile(`\bvars(?:\.|\[')(\w+)`)
	key      = regexp.MustCompile(`^( *)(?:- )?([\w-]+):`)
	uses     = regexp.MustCompile(`\buses["']?\s*:`)
	pinned   = regexp.MustCompile(`uses: (\./\.github/workflows/[\w-]+\.yml|[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)$`)
)

// workflows: a workflow only calls targets of the Makefile, and limits what a stranger's code may do. It is read
// by lines, not as YAML: one way to write a step is allowed, and lines that look like another way are refused.
func workflows(root string) ([]string, error) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		return nil, err
	}
	var targets []string
	for _, m := range target.FindAllStringSubmatch(string(makefile), -1) {
		targets = append(targets, m[1])
	}
	files, err := filepath.Glob(filepath.Join(root, ".github/workflows/*.y*ml"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no workflows in %s: %w", root, err)
	}
	var broken []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		say := func(line int, format string, args ...any) {
			broken = append(broken, fmt.Sprintf(".github/workflows/%s:%d ", filepath.Base(file), line)+fmt.Sprintf(format, args...))
		}
		early := earlyVariables(string(text))
		for _, n := range slices.Sorted(maps.Keys(early)) {
			say(n, "reads vars.%s where the variables of a job's environment are not known: make it a variable of the repository and name it REPO_%[1]s", early[n])
		}
		lines := bufio.NewScanner(strings.NewReader(string(text)))
		for n := 1; lines.Scan(); n++ {
			line := strings.TrimRight(lines.Text(), " ")
			if strings.HasPrefix(strings.TrimSpace(line), "#") {
				continue
			}
			if m := makes.FindStringSubmatch(line); m != nil {
				if !slices.Contains(targets, m[1]) {
					say(n, "calls make %s, which the Makefile does not have: name one of its targets or add this one", m[1])
				}
			} else if run.MatchString(line) {
				say(n, `runs something other than a target: write "run: make TARGET", which a person can run as well`)
			}
			if uses.MatchString(line) && !pinned.MatchString(line) {
				say(n, `uses an action by a name that can move: pin its commit, "uses: OWNER/NAME@40-HEX-DIGITS # v1.2.3"`)
			}
		}
		// The second must be there as often as the first.
		for _, pair := range [][2]string{
			{"\non:", "\npermissions:"},
			{"\non:", "\nconcurrency:"},
			{"\n    runs-on:", "\n    timeout-minutes:"},
			{"uses: actions/checkout@", "persist-credentials: false"},
		} {
			if strings.Count("\n"+string(text), pair[0]) != strings.Count("\n"+string(text), pair[1]) {
				say(1, "must have one %q for each %q: add what is missing", strings.TrimSpace(pair[1]), strings.TrimSpace(pair[0]))
			}
		}
	}
	return broken, nil
}

// earlyVariables are the variables, by line, that GitHub reads before it knows an environment's, or in a job without one: then
// they are empty. Those of an environment are known to a job's steps and env and to its environment's url; actionlint knows where
// vars may be used, but not whose they are, https://docs.github.com/en/actions/reference/workflows-and-actions/contexts.
func earlyVariables(workflow string) map[int]string {
	found, ofJob := map[int]string{}, map[int]string{}
	var part string
	environment := false
	leave := func() {
		if !environment {
			maps.Copy(found, ofJob)
		}
		ofJob, environment, part = map[int]string{}, false, ""
	}
	n := 0
	for line := range strings.Lines(workflow) {
		n++
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		if m := key.FindStringSubmatch(line); m != nil && len(m[1]) <= 2 {
			leave()
		} else if m != nil && len(m[1]) == 4 {
			part = m[2]
			environment = environment || part == "environment"
		}
		for _, m := range variable.FindAllStringSubmatch(line, -1) {
			known := part == "steps" || part == "env" || part == "environment" && strings.HasPrefix(line, "      url:")
			switch {
			case strings.HasPrefix(m[1], "REPO_"):
			case known:
				ofJob[n] = m[1]
			default:
				found[n] = m[1]
			}
		}
	}
	leave()
	return found
}
