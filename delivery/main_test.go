package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestThisRepositoryKeepsItsRules(t *testing.T) {
	broken, err := check("..")
	require.NoError(t, err)
	assert.Empty(t, broken)
}

// TestBrokenRules breaks one rule at a time in a copy of this repository whose commit is tagged as a release.
func TestBrokenRules(t *testing.T) {
	const (
		ci        = ".github/workflows/check.yml"
		deploy    = ".github/workflows/deploy.yml"
		migration = "sql/0001_first.sql"
	)
	tests := map[string]struct {
		file, old, new string // new instead of the first old in file; all of it where old is empty
		want           string
	}{
		"version with two parts":   {"version.txt", "", "1.0\n", `version.txt is "1.0": write a semantic version on one line, such as 1.4.0`},
		"version with a leading v": {"version.txt", "", "v1.0.0\n", `version.txt is "v1.0.0": write a semantic`},
		"version with a zero":      {"version.txt", "", "1.02.0\n", `version.txt is "1.02.0": write a semantic`},
		"version with two lines":   {"version.txt", "", "1.0.0\n1.0.1\n", `version.txt is "1.0.0\n1.0.1": write a semantic`},
		"prerelease with no end":   {"version.txt", "", "1.0.0-rc.\n", `version.txt is "1.0.0-rc.": write a semantic`},
		"version without an entry": {"version.txt", "", "7.0.0-rc.1\n", `CHANGELOG.md does not say what is in 7.0.0-rc.1: add a section "## [7.0.0-rc.1] - YYYY-MM-DD"`},
		"entry without text":       {"CHANGELOG.md", "", "## [1.2.3] - 2026-11-24\n\n### Added\n\n## [1.0.0] - 2026-11-23\n- x\n", `CHANGELOG.md does not say what is in 1.2.3`},
		"entry without a day":      {"CHANGELOG.md", "", "## [1.2.3]\n\n- x\n", `CHANGELOG.md does not say what is in 1.2.3`},
		"another oldest PostgreSQL": {"README.md", "PostgreSQL 15 or newer", "PostgreSQL 14 or newer",
			"README.md says that the oldest PostgreSQL is 14, and .github/workflows/check.yml that it is 15: write the same"},
		"another Go in the image":              {"Dockerfile", "golang:1.26.8", "golang:1.26.9", "Dockerfile says that Go is 1.26.9, and go.mod that it is 1.26.8: write the same"},
		"another PostgreSQL of compose.yaml's": {"compose.yaml", "postgres:17", "postgres:18", "compose.yaml says that Debian's PostgreSQL is 18"},
		"PostgreSQL's version elsewhere":       {"ansible/roles/settings/vars/main.yml", "postgres_version | int >= 15", "true", "does not name the oldest PostgreSQL"},
		"certificate that is red before it alerts": {"delivery/fleet.py", "RED_DRILL = 10,", "RED_DRILL = 21,",
			"delivery/fleet.py says that the fewest days that a certificate may have left is 21, and ansible/roles/monitoring/files/alerts.yml that it is 10"},
		"collection that nobody installs": {"ansible/requirements.yml", "community.aws", "community.other",
			"ansible/roles/fleet/tasks/bucket.yml uses community.aws, which ansible/requirements.yml does not name"},
		"edited migration": {migration, "text", "bytea", "sql/0001_first.sql was edited after v1.2.3 released it: " +
			"take it back with git checkout v1.2.3 -- sql/0001_first.sql, and write your change as a new file with the next number"},
		"missing target":    {ci, "make lint", "make tidy", "calls make tidy, which the Makefile does not have: name one of its targets or add this one"},
		"target and more":   {ci, "make lint", "make lint && curl x", `runs something other than a target: write "run: make TARGET"`},
		"block":             {ci, "run: make lint", "run: |\n          make lint", "runs something other than a target"},
		"flow style":        {ci, "- run: make lint", "- {run: env}", "runs something other than a target"},
		"quoted key":        {ci, "- run: make lint", `- "run": env`, "runs something other than a target"},
		"action by its tag": {ci, "actions/setup-go@4a3601121dd01d1626a1e23e37211e3254c1c06c # v6.4.0", "actions/setup-go@v6", "uses an action by a name that can move: pin its commit"},
		"runner of an environment": {ci, "runs-on: ubuntu-24.04", "runs-on: ${{ vars.RUNNER || 'ubuntu-24.04' }}",
			"reads vars.RUNNER where the variables of a job's environment are not known: make it a variable of the repository and name it REPO_RUNNER"},
		"runner of an environment, second": {ci, "runs-on: ubuntu-24.04", "runs-on: ${{ vars.RUNNER || vars.REPO_RUNNER }}", "reads vars.RUNNER where"},
		"runner of an environment, list":   {ci, "runs-on: ubuntu-24.04", "runs-on:\n      - ${{ vars['RUNNER'] }}", "reads vars.RUNNER where"},
		"name of an environment":           {deploy, "name: production", "name: ${{ vars.STAGE }}", "reads vars.STAGE where"},
		"group of all runs":                {deploy, "group: deploy", "group: ${{ vars.GROUP }}", "reads vars.GROUP where"},
		"condition in two lines":           {deploy, "    timeout-minutes: 60\n", "    if: >-\n      vars.DEPLOY == 'yes'\n    timeout-minutes: 60\n", "reads vars.DEPLOY where"},
		"step without an environment":      {ci, "- run: make lint", "- run: make lint\n        env:\n          A: ${{ vars.REGION }}", "reads vars.REGION where"},
		"no time limit":                    {ci, "    timeout-minutes: 20\n", "", `must have one "timeout-minutes:" for each "runs-on:": add what is missing`},
		"all permissions":                  {ci, "permissions:\n  contents: read\n", "", `must have one "permissions:" for each "on:"`},
		"kept credentials":                 {ci, "persist-credentials: false", "fetch-tags: true", `must have one "persist-credentials: false" for each "uses: actions/checkout@"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := release(t, map[string]string{
				"version.txt":  "1.2.3\n",
				"CHANGELOG.md": "## [1.2.3] - 2026-11-24\n\n### Added\n\n- x\n",
				migration:      "CREATE TABLE t (c text);\n",
			})
			broken, err := check(root)
			require.NoError(t, err)
			require.Empty(t, broken, "before anything was broken")

			text, err := os.ReadFile(filepath.Join(root, tt.file))
			require.NoError(t, err)
			after := tt.new
			if tt.old != "" {
				require.Contains(t, string(text), tt.old)
				after = strings.Replace(string(text), tt.old, tt.new, 1)
			}
			require.NoError(t, os.WriteFile(filepath.Join(root, tt.file), []byte(after), 0o644))

			broken, err = check(root)
			require.NoError(t, err)
			require.Len(t, broken, 1)
			assert.Contains(t, broken[0], tt.want)
		})
	}
}

// What reaches the hosts asks for approval, and a job of a release that compiles others' code or signs cannot write the repository.
func TestRightsOfWorkflows(t *testing.T) {
	files, err := filepath.Glob("../.github/workflows/*.yml")
	require.NoError(t, err)
	jobs, step := regexp.MustCompile(`(?m)^  [a-z][a-z0-9-]*:$`), regexp.MustCompile(`run: make ([a-z-]+)`)
	rights := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		_, body, _ := strings.Cut(string(text), "\njobs:\n")
		names := jobs.FindAllStringIndex(body, -1)
		for i, at := range names {
			end := len(body)
			if i+1 < len(names) {
				end = names[i+1][0]
			}
			job := body[at[0]:end]
			for _, m := range regexp.MustCompile(`(?m)^      ([a-z-]+): write|environment:\s+(?:name: )?([a-z]+)$`).FindAllStringSubmatch(job, -1) {
				for _, run := range step.FindAllStringSubmatch(job, -1) {
					rights[m[1]+m[2]] += run[1] + " "
				}
			}
		}
	}
	assert.Equal(t, map[string]string{"contents": "publish ", "packages": "image-push sign ", "attestations": "image-push sign ",
		"id-token": "deploy image-push sign ", "production": "deploy "}, rights)
}

func TestMigrationsMayBeAddedButNotTakenAway(t *testing.T) {
	root := release(t, map[string]string{"sql/0001_first.sql": "SELECT 1;\n", "sql/0002_second.sql": "SELECT 2;\n"})
	require.NoError(t, os.WriteFile(filepath.Join(root, "sql/0003_third.sql"), []byte("SELECT 3;\n"), 0o644))
	broken, err := migrations(root)
	require.NoError(t, err)
	assert.Empty(t, broken)

	require.NoError(t, os.Rename(filepath.Join(root, "sql/0002_second.sql"), filepath.Join(root, "sql/0002_other.sql")))
	broken, err = migrations(root)
	require.NoError(t, err)
	require.Len(t, broken, 1)
	assert.Contains(t, broken[0], "sql/0002_second.sql was edited after v1.2.3 released it")
}

func TestMigrationsNeedTheHistory(t *testing.T) {
	root := release(t, nil)
	shallow := filepath.Join(t.TempDir(), "shallow")
	commit(t, root)
	require.NoError(t, exec.Command("git", "clone", "--quiet", "--depth=1", "file://"+root, shallow).Run())
	broken, err := migrations(shallow)
	require.NoError(t, err)
	assert.Equal(t, []string{"this clone has no history to compare the migrations with: run git fetch --unshallow --tags"}, broken)
}

func TestAnArchiveHasNoHistory(t *testing.T) {
	root := release(t, map[string]string{"sql/0001_first.sql": "SELECT 1;\n"})
	require.NoError(t, os.RemoveAll(filepath.Join(root, ".git")))
	broken, err := migrations(root)
	require.NoError(t, err)
	assert.Empty(t, broken)

	// But a history that git refuses to read is not taken for none.
	require.NoError(t, os.WriteFile(filepath.Join(root, ".git"), []byte("gitdir: /nowhere\n"), 0o644))
	_, err = migrations(root)
	assert.ErrorContains(t, err, "not a git repository")
}

// release returns a repository with the files of this one that check reads, and those given instead, committed and
// tagged v1.2.3.
func release(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	require.NoError(t, os.CopyFS(filepath.Join(root, ".github"), os.DirFS("../.github")))
	for _, name := range []string{"Makefile", "Dockerfile", "README.md", "go.mod", "compose.yaml", "ansible/roles/settings/vars/main.yml",
		"ansible/group_vars/all/defaults.yml", "ansible/roles/verify/tasks/main.yml", "ansible/roles/monitoring/files/alerts.yml", "ansible/MONITORING.md", "delivery/fleet.py", "e2e/images/postgres/Dockerfile",
		"ansible/requirements.yml", "ansible/roles/fleet/tasks/bucket.yml"} {
		text, err := os.ReadFile(filepath.Join("..", name))
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(root, name), text, 0o644))
	}
	require.NoError(t, os.Mkdir(filepath.Join(root, "sql"), 0o755))
	for name, text := range files {
		require.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o644))
	}
	commit(t, root)
	_, err := git(root, "tag", "v1.2.3")
	require.NoError(t, err)
	return root
}

func commit(t *testing.T, root string) {
	t.Helper()
	for _, args := range [][]string{
		{"init", "--quiet"},
		{"add", "--all"},
		{"-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "--allow-empty", "--message=test"},
	} {
		_, err := git(root, args...)
		require.NoError(t, err)
	}
}

// Debian 13 with its package ansible, but without ansible-lint and without an engine.
func TestAnsibleSaysWhatIsMissing(t *testing.T) {
	script, err := filepath.Abs("ansible.sh")
	require.NoError(t, err)
	home := t.TempDir()
	fake := "#!/bin/sh\necho 'ansible [core 2.19.0]'\n"
	require.NoError(t, os.WriteFile(filepath.Join(home, "ansible"), []byte(fake), 0o755))
	try := func(program string) (string, error) {
		cmd := exec.Command("bash", script, program)
		cmd.Env = []string{"HOME=" + home, "PATH=" + home + ":/usr/bin:/bin", "DOCKER_HOST=unix://" + home + "/none"}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := try("ansible-other")
	require.Error(t, err)
	assert.Equal(t, "ansible.sh: ansible-other of ansible-core 2.19 or newer is needed: "+
		"install Debian 13's packages ansible and ansible-lint, or start a Docker engine\n", out)
	out, err = try("ansible")
	require.NoError(t, err, out)
	assert.Equal(t, "ansible [core 2.19.0]\n", out)
}
