//go:build e2e

package e2e

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestFiles runs the module files in the controller: what it makes, what it leaves, and what it says of both.
func TestFiles(t *testing.T) {
	setUp(t)
	name, err := controller()
	require.NoError(t, err)
	dir := t.Name()
	in := func(command string) string {
		t.Helper()
		out, err := docker("exec", "--workdir", "/tmp", name, "sh", "-c", command)
		require.NoError(t, err, out)
		return strings.TrimSpace(out)
	}
	in("mkdir " + dir)
	type item map[string]any
	run := func(t *testing.T, options string, items ...item) (written []string, output string, err error) {
		t.Helper()
		for i := range items {
			items[i]["path"] = filepath.Join("/tmp", dir, items[i]["path"].(string))
		}
		args, err := json.Marshal(map[string]any{"files": items})
		require.NoError(t, err)
		command := append([]string{"exec", "--workdir", filepath.Join(repoDir(), "ansible"), "--env", "ANSIBLE_CALLBACK_RESULT_FORMAT=json", name,
			"ansible", "--inventory", "localhost,", "--connection", "local", "--module-name", "files", "--args", string(args)}, strings.Fields(options)...)
		output, err = docker(append(command, "localhost")...)
		var result struct{ Written []string }
		if from := strings.Index(output, "{"); err == nil && from >= 0 {
			_ = json.Unmarshal([]byte(output[from:strings.LastIndex(output, "}")+1]), &result)
		}
		return result.Written, output, err
	}
	list := func() []item {
		return []item{
			{"path": "folder", "mode": "0750", "owner": "65532"},
			{"path": "deep/er/file", "content": "one\n", "mode": "0640", "group": "www-data"},
			{"path": "link", "link": "deep/er/file"},
			{"path": "other", "content": "", "when": false},
		}
	}
	const all = "stat --format '%N %U:%G %a %F' folder deep deep/er/file link; cat link; ls -A . deep/er"

	written, _, err := run(t, "--check", list()...)
	require.NoError(t, err)
	assert.Len(t, written, 3)
	assert.Empty(t, in("ls -A "+dir), "--check made something")

	written, _, err = run(t, "", list()...)
	require.NoError(t, err)
	assert.Len(t, written, 3)
	want := "'folder' UNKNOWN:root 750 directory\n'deep' root:root 755 directory\n'deep/er/file' root:www-data 640 regular file\n" +
		"'link' -> 'deep/er/file' root:root 777 symbolic link\none\n.:\ndeep\nfolder\nlink\n\ndeep/er:\nfile"
	assert.Equal(t, want, in("cd "+dir+" && "+all))

	written, _, err = run(t, "", list()...)
	require.NoError(t, err)
	assert.Empty(t, written)

	in("cd " + dir + " && chmod 600 deep/er/file && chown 1 folder && rm link && touch link")
	written, _, err = run(t, "", list()...)
	require.NoError(t, err)
	assert.Len(t, written, 3)
	assert.Equal(t, want, in("cd "+dir+" && "+all))

	_, output, err := run(t, "", item{"path": "deep/er/file", "content": "two\n", "validate": "grep one %s"})
	assert.Error(t, err)
	assert.Contains(t, output, "deep/er/file stays as it was, grep one %s")
	assert.Equal(t, want, in("cd "+dir+" && "+all))

	_, output, err = run(t, "--check --diff", item{"path": "deep/er/file", "content": "two\n", "mode": "0640", "group": "www-data"})
	require.NoError(t, err)
	assert.Contains(t, output, "-one\n+two\n")
	assert.Equal(t, want, in("cd "+dir+" && "+all))

	_, output, err = run(t, "", item{"path": "folder", "content": "a file in a folder's place"})
	assert.Error(t, err)
	assert.Contains(t, output, "write /tmp/"+dir+"/folder: ")
	assert.Equal(t, want, in("cd "+dir+" && "+all))
}
