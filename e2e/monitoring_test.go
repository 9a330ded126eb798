//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// An operator receives the alerts: in a mailbox in the controller and by a hook here.
type operator struct {
	hook string // http://host:port
	smtp string // host:port
	mail string // file with every mail that came

	mu    sync.Mutex
	calls map[string][]string // of the hook: bodies by path
}

// startOperator starts an operator for the hosts of a network; it ends with the run.
func startOperator(t *testing.T, n network) *operator {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(n.addr(1), "0"))
	require.NoError(t, err)
	o := &operator{hook: "http://" + listener.Addr().String(), smtp: net.JoinHostPort(addressIn(t, n), "25"),
		mail: filepath.Join(shared(), "mail"), calls: map[string][]string{}}
	server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		o.mu.Lock()
		defer o.mu.Unlock()
		o.calls[r.URL.Path] = append(o.calls[r.URL.Path], string(body))
	})}
	go server.Serve(listener)
	atEnd(func() { server.Close() })
	_, err = docker("exec", "--detach", "--env", "PYTHONUNBUFFERED=1", controllerName(), "sh", "-c",
		"exec python3 -m aiosmtpd --nosetuid --listen 0.0.0.0:25 --class aiosmtpd.handlers.Debugging stdout > "+o.mail+" 2>&1")
	require.NoError(t, err)
	return o
}

// told is nil when mail and hook have brought the alert.
func (o *operator) told(alert string) error {
	mail, err := os.ReadFile(o.mail)
	if err != nil {
		return err
	}
	if !regexp.MustCompile(`(?m)^Subject: .*` + alert).Match(mail) {
		return fmt.Errorf("no mail has the subject %s:\n%s", alert, tail(string(mail), 20))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if calls := strings.Join(o.calls["/alert"], "\n"); !strings.Contains(calls, `"alertname":"`+alert+`"`) {
		return fmt.Errorf("no call of the hook names %s: %s", alert, calls)
	}
	return nil
}

// heartbeats is how often the heartbeat was called.
func (o *operator) heartbeats() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.calls["/heartbeat"])
}

// TestMonitoring lets Debian 13's promtool and amtool judge the alert rules, their tests, the
// dashboard's expressions and the configuration, and holds rules, tests, docs and metrics together.
func TestMonitoring(t *testing.T) {
	setUp(t)
	name, err := controller()
	require.NoError(t, err)
	judge := func(t *testing.T, args ...string) {
		t.Helper()
		_, err := docker(append([]string{"exec", name}, args...)...)
		assert.NoError(t, err)
	}
	role := filepath.Join(repoDir(), "ansible", "roles", "monitoring")
	read := func(path ...string) string {
		text, err := os.ReadFile(filepath.Join(path...))
		require.NoError(t, err)
		return string(text)
	}
	rules := read(role, "files", "alerts.yml")
	tests := read(role, "files", "alerts_test.yml") + read(role, "files", "alerts_days_test.yml")
	alerts := regexp.MustCompile(`(?m)^      - alert: (\w+)$`).FindAllStringSubmatch(rules, -1)
	require.NotEmpty(t, alerts)

	t.Run("rules", func(t *testing.T) {
		judge(t, "promtool", "check", "rules", "--lint-fatal", filepath.Join(role, "files", "alerts.yml"))
		judge(t, "promtool", "test", "rules", filepath.Join(role, "files", "alerts_test.yml"), filepath.Join(role, "files", "alerts_days_test.yml"))
	})

	t.Run("every alert is tested and explained", func(t *testing.T) {
		docs := read(repoDir(), "ansible", "MONITORING.md")
		for _, a := range alerts {
			assert.Regexp(t, `(?m)alertname: `+a[1]+`\n +eval_time: \w+\n +exp_alerts:`, tests, "no test sees it fire")
			assert.Regexp(t, `\n### `+a[1]+`\n- \*\*Means:\*\* .*\n- \*\*Visitors see:\*\* .*\n- \*\*Look:\*\* .*\n- \*\*Do:\*\* .*\n`, docs)
		}
		assert.Len(t, alerts, strings.Count(docs, "\n### "), "the docs explain an alert that is not there")
	})

	t.Run("dashboard", func(t *testing.T) {
		var dashboard struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
		require.NoError(t, json.Unmarshal([]byte(read(role, "files", "dashboard.json")), &dashboard))
		require.NotEmpty(t, dashboard.Panels)
		// promtool knows no dashboards: each expression becomes a recording rule.
		var recorded strings.Builder
		recorded.WriteString("groups:\n- name: dashboard\n  rules:\n")
		for _, p := range dashboard.Panels {
			assert.NotEmpty(t, p.Targets, p.Title)
			for _, target := range p.Targets {
				expr, err := json.Marshal(strings.ReplaceAll(target.Expr, "$__rate_interval", "1m"))
				require.NoError(t, err)
				fmt.Fprintf(&recorded, "  - {record: panel, labels: {n: \"%d\"}, expr: %s}\n", recorded.Len(), expr)
			}
		}
		path := filepath.Join(shared(), "dashboard-rules.yml")
		require.NoError(t, os.WriteFile(path, []byte(recorded.String()), 0o644))
		judge(t, "promtool", "check", "rules", path)
	})

	t.Run("the metrics exist", func(t *testing.T) {
		exposed := read(repoDir(), "metrics.go") + read(repoDir(), "resources.go") + read(repoDir(), "ansible", "roles", "postgres", "files", "footfall-db") + read(repoDir(), "ansible", "roles", "rds", "files", "footfall-rds")
		used := regexp.MustCompile(`\bfootfall_\w+`).FindAllString(rules+tests+read(role, "files", "dashboard.json"), -1)
		for _, metric := range used {
			metric = strings.TrimSuffix(metric, "_bucket") // of a histogram
			assert.Regexp(t, `\b`+metric+`\b`, exposed)
		}
	})

	t.Run("configuration", func(t *testing.T) {
		inventory := filepath.Join(shared(), "monitoring", "hosts")
		settings := filepath.Join(shared(), "monitoring", "group_vars", "all.yml")
		require.NoError(t, os.MkdirAll(filepath.Dir(settings), 0o755))
		require.NoError(t, os.WriteFile(inventory, []byte("[footfall]\nfootfall-1 private_ip=10.0.0.1\nfootfall-2 private_ip=10.0.0.2\n"), 0o644))
		require.NoError(t, os.WriteFile(settings, []byte(read(repoDir(), "ansible", "group_vars", "all", "defaults.yml")), 0o644))
		// The paths at which the rules and the certificates lie on a host: promtool reads them as well.
		judge(t, "install", "-D", "-m", "644", filepath.Join(role, "files", "alerts.yml"), "/etc/prometheus/footfall-alerts.yml")
		judge(t, "install", "-D", "-m", "644", "/etc/ssl/certs/ca-certificates.crt", "/etc/footfall/group.pem")
		for _, database := range []string{"", "postgres://elsewhere/footfall"} {
			p := tryAnsible(t, nil, inventory, filepath.Join(repoDir(), "e2e", "monitoring.yml"), "-e", "out="+shared(), "-e", "database_url="+database)
			p.require(t)
			judge(t, "promtool", "check", "config", filepath.Join(shared(), "prometheus.yml"))
			judge(t, "amtool", "check-config", filepath.Join(shared(), "alertmanager.yml"))
		}
	})
}
