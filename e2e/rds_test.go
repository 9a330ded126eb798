//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// zonesID is the access key of an operator who has zones-policy.json beside provision-policy.json.
const zonesID = "AKIAFOOTFALLE2EZONES0000"

// startZones is a cloud whose managed databases have names, and the settings of each playbook's run there.
func startZones(t *testing.T) (*cloud, []string) {
	t.Helper()
	c := startCloud(t)
	c.names = startResolver(t, c.network)
	for _, name := range []string{"truststore.pki.rds", "rds." + region, "monitoring." + region} {
		c.names.point(name+".amazonaws.com", c.network.addr(1))
	}
	return c, []string{"-e", "app_image=" + appImage(), "-e", "app_image_archive=" + archive(t, release(t)), "-e", "requests_per_second=100000",
		"-e", "backup_s3_endpoint=" + c.bucket.endpoint, "-e", "backup_s3_ca=/etc/ssl/bucket.pem", "-e", "monitoring=false"}
}

// TestRDS moves the count of a running page to a managed database and back while visitors come, cuts a move off, kills
// the writer, loses the first host, and takes everything down.
func TestRDS(t *testing.T) {
	c, settings := startZones(t)
	s := &service{fleet: &fleet{network: c.network}, version: repoVersion(t)}
	try := func(t *testing.T, playbook string, args ...string) play {
		t.Helper()
		p := c.ansibleAs(t, zonesID, playbook, slices.Concat(settings, args)...)
		for _, whose := range []string{"master", "footfall"} {
			if secret, err := c.parameter("/footfall/rds/" + whose); err == nil {
				assert.NotContains(t, p.Output, secret)
			}
		}
		return p
	}
	run := func(t *testing.T, playbook string, args ...string) play {
		t.Helper()
		p := try(t, playbook, args...)
		p.require(t)
		if _, ok := c.instances(t)["footfall-1"]; ok {
			s.hosts = []*host{c.host(t, "footfall-1")}
		}
		return p
	}
	// moved is a run with visitors meanwhile.
	moved := func(t *testing.T, what, way string) {
		t.Helper()
		before := s.totals(t)
		l := startLoad(t, s.url("/"), 4, 50*time.Millisecond)
		p := run(t, "site.yml", "-e", "database="+way)
		r := l.finish()
		took := regexp.MustCompile(`moved \d+ \d+ visits and visitors from the \w+ to the \w+ in \d+ s`).FindString(strings.Join(strings.Fields(p.Output), " "))
		assert.NotEmpty(t, took)
		s.balance(t, what+", under load: "+took, before, r, 0, r.Away)
	}
	// databases are those of a side that are called footfall…
	const names = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database WHERE datname LIKE 'footfall%'"
	onHost := func() (string, error) {
		return s.edge().sh(`cd / && runuser -u postgres -- psql -X -qAtc "` + names + `"`)
	}
	onRDS := func() string { return c.pair.sql(t, c.pair.writer, names) }
	lose := func(t *testing.T, name string) {
		t.Helper()
		i := c.instances(t)[name]
		require.NoError(t, c.call("ModifyInstanceAttribute", url.Values{"InstanceId": {i.ID}, "DisableApiTermination.Value": {"false"}}, nil))
		require.NoError(t, c.call("TerminateInstances", url.Values{"InstanceId.1": {i.ID}}, nil))
	}

	ok := t.Run("settings that will not do", func(t *testing.T) {
		p := try(t, "site.yml", "-e", `{"database": "aurora", "rds_class": "t4g.small", "database_url": "postgres://db/x"}`)
		assert.Error(t, p.Err)
		for _, want := range []string{`database is "aurora"; it must be rds, host or empty`, "needs hosts in EC2, and neither database_url nor aws_subnet", `rds_class is "t4g.small"`} {
			assert.Contains(t, strings.Join(strings.Fields(p.Output), " "), want)
		}
	})
	ok = ok && t.Run("a page on one host", func(t *testing.T) {
		run(t, "site.yml")
		s.visit(t)
		assert.Empty(t, c.databases(t))
		versioning, err := c.request(http.MethodGet, "s3", "", "", "", "/"+fleetBucket+"?versioning")
		require.NoError(t, err)
		assert.Contains(t, string(versioning), "<Status>Enabled</Status>", "no host can remove an old version of a backup")
	})
	ok = ok && t.Run("cut off", func(t *testing.T) {
		before := s.totals(t)
		l := startLoad(t, s.url("/"), 4, 50*time.Millisecond)
		ended := make(chan play, 1)
		go func() { ended <- try(t, "site.yml", "-e", "database=rds") }()
		eventually(t, 30*time.Minute, "the count is being moved", func() error {
			require.Empty(t, ended, "the run ended before")
			now, err := onHost()
			if err == nil && now != "footfall_moving" {
				err = fmt.Errorf("databases: %s", now)
			}
			return err
		})
		s.edge().must(t, "pkill -9 footfall-rds")
		assert.Error(t, (<-ended).Err)
		status, body, err := s.get("/")
		require.NoError(t, err)
		assert.Equal(t, http.StatusServiceUnavailable, status, body)
		r := l.finish()
		begin := time.Now()
		run(t, "site.yml", "-e", "database=rds")
		assert.Equal(t, "footfall", onRDS())
		s.balance(t, "the move to the managed database killed, and run again", before, r, 0, time.Since(begin))
		assert.Contains(t, s.edge().must(t, "cat /etc/footfall/app/database_url"), c.databases(t)[0].Address+":5432/footfall?sslmode=verify-full")
		assert.Equal(t, "inactive", s.edge().must(t, "systemctl is-active postgresql@17-footfall footfall-{backup,drill,recount}.timer | uniq"))
		assert.Equal(t, database{ID: "footfall", Class: "db.t4g.small", Engine: "17.6", Status: "available", MultiAZ: true, Encrypted: true,
			Protected: true, Retention: 28, CA: "rds-ca-rsa2048-g1", Storage: 20, Address: c.databases(t)[0].Address}, c.databases(t)[0])
	})
	ok = ok && t.Run("again", func(t *testing.T) {
		p := run(t, "site.yml", "-e", "database=rds")
		assert.Zero(t, p.Changed, "%v", p.Tasks)
	})
	ok = ok && t.Run("how it is", func(t *testing.T) {
		look := func(want string) {
			t.Helper()
			s.edge().must(t, "systemctl start footfall-rds.service")
			assert.Equal(t, want, s.edge().must(t, "sed -n 's/^footfall_rds_//p' /var/lib/prometheus/node-exporter/footfall-rds.prom | sed 's/^connections .*/connections/'"))
		}
		const sizes = "storage_bytes 21474836480\nstorage_free_bytes %s\nconnections\nconnections_limit 100"
		s.edge().must(t, "rm -f /var/lib/footfall/recounted")
		look(fmt.Sprintf("standby 1\n"+sizes, "NaN"))
		assert.Contains(t, s.edge().must(t, "cat /var/lib/footfall/recounted"), "agrees")
		assert.Equal(t, "active", s.edge().must(t, "systemctl is-active footfall-rds.timer"))
		require.NoError(t, c.query("monitoring", "2010-08-01", "PutMetricData", url.Values{"Namespace": {"AWS/RDS"},
			"MetricData.member.1.MetricName": {"FreeStorageSpace"}, "MetricData.member.1.Value": {"1500000000"},
			"MetricData.member.1.Timestamp":                {time.Now().Add(-time.Minute).UTC().Format(time.RFC3339)}, // the question ends with the last whole second
			"MetricData.member.1.Dimensions.member.1.Name": {"DBInstanceIdentifier"}, "MetricData.member.1.Dimensions.member.1.Value": {"footfall"}}, nil))
		require.NoError(t, c.rds("ModifyDBInstance", url.Values{"DBInstanceIdentifier": {"footfall"}, "MultiAZ": {"false"}}, nil))
		look(fmt.Sprintf("standby 0\n"+sizes, "1500000000.0"))
		out, err := c.inController(t, zonesID, "../delivery/fleet.py status")
		assert.ErrorContains(t, err, "exit status 1")
		assert.Contains(t, out, "the managed database has no standby")
		assert.Contains(t, out, "the count is in one zone;")
		_, err = s.edge().sh("footfall-release psql </dev/null")
		assert.ErrorContains(t, err, "the database is not on this host")
		readPolicy(t, "files/watch-policy.json").isLeastBeside(t, readPolicy(t, "templates/host-policy.json"), needed(t, hostID))
	})
	ok = ok && t.Run("the writer fails", func(t *testing.T) {
		before := s.totals(t)
		l := startLoad(t, s.url("/"), 4, 50*time.Millisecond)
		eventually(t, time.Minute, "visits come", func() error {
			if l.sent() < 200 {
				return fmt.Errorf("%d", l.sent())
			}
			return nil
		})
		c.pair.fail(t)
		c.names.point(c.databases(t)[0].Address, c.pair.addr(c.network, 200+c.pair.writer))
		s.awaitPage(t, time.Minute, "the page counts with the standby")
		r := l.finish()
		s.balance(t, "the managed database's writer killed, its name moved at once", before, r, 1, r.Away)
	})
	ok = ok && t.Run("restored to a moment", func(t *testing.T) {
		c.pair.copy(t, "")
		then := s.totals(t)
		moment := time.Now().UTC().Format("2006-01-02 15:04:05+00")
		for range 3 {
			s.visit(t)
		}
		now := s.totals(t)
		p := run(t, "restore.yml", "-e", "database=rds")
		assert.Contains(t, p.Output, fmt.Sprintf("%d visits and %d visitors", then.Visits, then.Visitors))
		require.Len(t, c.databases(t), 1)
		assert.Equal(t, now, s.totals(t), "a drill changes nothing")

		c.pair.sql(t, 2, "ALTER DATABASE footfall RENAME TO footfall_replaced") // an earlier run was cut off after it had closed the live one
		p = run(t, "restore.yml", "-e", "database=rds", "-e", "restore_into=live", "-e", "restore_to='"+moment+"'")
		record("restore.yml, the managed database to a moment", 0, 0, p.Took, "Amazon's own time not included")
		assert.Equal(t, then, s.totals(t))
		require.Len(t, c.databases(t), 2)
		assert.Equal(t, "footfall_replaced", onRDS(), "the old one counts for nobody")
		c.pair.writer = 2
		s.visit(t)
		s.recount(t)
		old := c.databases(t)[slices.IndexFunc(c.databases(t), func(d database) bool { return d.ID != "footfall" })].ID
		require.NoError(t, c.rds("ModifyDBInstance", url.Values{"DBInstanceIdentifier": {old}, "DeletionProtection": {"false"}}, nil))
		require.NoError(t, c.rds("DeleteDBInstance", url.Values{"DBInstanceIdentifier": {old}, "SkipFinalSnapshot": {"true"}}, nil))
		assert.Zero(t, run(t, "site.yml", "-e", "database=rds", "--check").Failed)
	})
	ok = ok && t.Run("no empty count begins where it was", func(t *testing.T) {
		out, err := s.edge().sh("footfall-db serve " + s.edge().ip)
		assert.ErrorContains(t, err, "the count was moved to the managed database", out)
		assert.Equal(t, "footfall_moved", strings.Join(strings.Fields(func() string { now, _ := onHost(); return now }()), " "))
		s.visit(t)
	})
	ok = ok && t.Run("back", func(t *testing.T) {
		moved(t, "from the managed database to the first host", "host")
		now, err := onHost()
		require.NoError(t, err)
		assert.Equal(t, "footfall footfall_moved", now)
		assert.Equal(t, "footfall_moved", onRDS())
		assert.Contains(t, s.edge().must(t, "cat /etc/footfall/app/database_url"), "/run/postgresql")
	})
	ok = ok && t.Run("there again, and what drifted is put right", func(t *testing.T) {
		require.NoError(t, c.rds("ModifyDBInstance", url.Values{"DBInstanceIdentifier": {"footfall"}, "DeletionProtection": {"false"}, "AllocatedStorage": {"30"}}, nil))
		moved(t, "from the first host to the managed database", "rds")
		assert.Equal(t, "footfall footfall_moved", onRDS())
		assert.True(t, c.databases(t)[0].Protected)
		assert.True(t, c.databases(t)[0].MultiAZ)
		assert.Equal(t, 30, c.databases(t)[0].Storage, "storage that grew by itself stays")
	})
	ok = ok && t.Run("the first of two hosts is lost", func(t *testing.T) {
		run(t, "site.yml", "-e", "database=rds", "-e", "node_count=2")
		s.visit(t)
		before, second := s.totals(t), c.instances(t)["footfall-2"].ID
		lose(t, "footfall-1")
		p := run(t, "site.yml", "-e", "database=rds")
		record("the first of two hosts lost, its count on the managed database", 0, 0, p.Took, "lost 0")
		assert.Equal(t, second, c.instances(t)["footfall-2"].ID)
		assert.Equal(t, before, s.totals(t))
		assert.Empty(t, c.volumes(t, "footfall-data")[0].Instance, "the new host needs no data volume")
		assert.Zero(t, run(t, "site.yml", "-e", "database=rds").Changed)
		c.host(t, "footfall-2").must(t, ": > /var/log/nginx/access.log")
		eventually(t, 30*time.Second, "the new edge sends the second host visits", func() error {
			s.visit(t)
			_, err := c.host(t, "footfall-2").sh(`grep '"path":"/"' /var/log/nginx/access.log`)
			return err
		})
		run(t, "site.yml", "-e", "database=rds", "-e", "node_count=1")
	})
	ok = ok && t.Run("destroyed and made again", func(t *testing.T) {
		run(t, "destroy.yml", "-e", "project=footfall", "-e", "database=rds")
		assert.Empty(t, c.databases(t))
		require.Len(t, c.snapshots(t), 1)
		before := c.password(t, "master")
		run(t, "site.yml", "--tags", "fleet", "-e", "database=rds")
		assert.Equal(t, 28, c.databases(t)[0].Retention, "a setting that RestoreDBInstanceFromDBSnapshot does not take")
		assert.Equal(t, before, c.password(t, "master"))
		assert.Zero(t, run(t, "site.yml", "--tags", "fleet", "-e", "database=rds", "--check", "--diff").Changed)
		run(t, "destroy.yml", "-e", "project=footfall", "-e", "database=rds", "-e", "destroy_data=true")
		assert.Empty(t, c.databases(t))
		assert.Empty(t, c.snapshots(t))
		_, err := c.parameter("/footfall/rds/master")
		assert.ErrorContains(t, err, "ParameterNotFound")
	})
	ok = ok && t.Run("the least rights", func(t *testing.T) {
		readPolicy(t, "files/zones-policy.json").isLeastBeside(t, readPolicy(t, "files/provision-policy.json"), needed(t, zonesID))
	})
	require.True(t, ok, "each step needs the one before")
}

// A database is what DescribeDBInstances says of one.
type database struct {
	ID        string `xml:"DBInstanceIdentifier"`
	Class     string `xml:"DBInstanceClass"`
	Engine    string `xml:"EngineVersion"`
	Status    string `xml:"DBInstanceStatus"`
	MultiAZ   bool   `xml:"MultiAZ"`
	Encrypted bool   `xml:"StorageEncrypted"`
	Protected bool   `xml:"DeletionProtection"`
	Retention int    `xml:"BackupRetentionPeriod"`
	CA        string `xml:"CACertificateIdentifier"`
	Storage   int    `xml:"AllocatedStorage"`
	Address   string `xml:"Endpoint>Address"`
}

func (c *cloud) databases(t *testing.T) []database {
	t.Helper()
	all, err := c.describeDatabases()
	require.NoError(t, err)
	return all
}

func (c *cloud) describeDatabases() ([]database, error) {
	var answer struct {
		All []database `xml:"DescribeDBInstancesResult>DBInstances>DBInstance"`
	}
	err := c.rds("DescribeDBInstances", nil, &answer)
	return answer.All, err
}

func (c *cloud) snapshots(t *testing.T) []string {
	t.Helper()
	var answer struct {
		All []string `xml:"DescribeDBSnapshotsResult>DBSnapshots>DBSnapshot>DBSnapshotIdentifier"`
	}
	require.NoError(t, c.rds("DescribeDBSnapshots", url.Values{"SnapshotType": {"manual"}}, &answer))
	return answer.All
}

// rds asks the API of RDS and decodes its answer.
func (c *cloud) rds(action string, params url.Values, answer any) error {
	return c.query("rds", "2014-10-31", action, params, answer)
}

// resolving is what makes a host ask the resolver, if there is one.
func (c *cloud) resolving() string {
	if c.names == nil {
		return ""
	}
	return "echo nameserver " + c.network.addr(1) + " > /etc/resolv.conf\n"
}

// supply gives the managed database a PostgreSQL, and a restored one that of pair.copy: it answers where the API says, also
// after it has taken the other's name.
func (c *cloud) supply(t *testing.T) error {
	all, err := c.describeDatabases()
	if err != nil {
		return err
	}
	for _, d := range all {
		switch {
		case c.pair == nil:
			master, err := c.parameter("/footfall/rds/master")
			if err != nil {
				return err
			}
			p := startPair(t, c.network, d.Address, master, 200)
			c.names.point(d.Address, p.addr(c.network, 200))
			c.mu.Lock()
			c.pair = p
			c.mu.Unlock()
		case d.ID == "footfall-restored":
			c.names.point(d.Address, c.pair.addr(c.network, 202))
		case strings.HasPrefix(d.ID, "footfall-before-"):
			c.names.point(strings.Replace(d.Address, d.ID, "footfall", 1), c.pair.addr(c.network, 202))
		}
	}
	return nil
}

// password is one of the managed database's, from SSM.
func (c *cloud) password(t *testing.T, whose string) string {
	t.Helper()
	value, err := c.parameter("/footfall/rds/" + whose)
	require.NoError(t, err)
	return value
}

// isLeastBeside fails the test unless both policies together allow all that was asked for, and without any one action of p
// do not.
func (p policy) isLeastBeside(t *testing.T, base policy, asked map[string]need) {
	t.Helper()
	rest := map[string]need{}
	for name, n := range asked {
		if base.allows(n) {
			continue
		}
		assert.True(t, slices.Concat(base, p).allows(n), "denied: %s", n)
		rest[name] = n
	}
	p.isLeast(t, rest)
}

// rdsNeeds is what IAM asks for where a request to RDS is made: the action on all that it names, tags at the creation, and
// in an account that never had a managed database the role of the service. From Amazon's Service Authorization Reference, the page of RDS.
func rdsNeeds(form url.Values) []need {
	action := form.Get("Action")
	own := need{action: "rds:" + action}
	add := func(kind, name string) {
		own.targets = append(own.targets, target{arn: "arn:aws:rds:" + region + ":" + account + ":" + kind + ":" + name})
	}
	for _, p := range []struct{ name, kind string }{{"DBInstanceIdentifier", "db"}, {"NewDBInstanceIdentifier", "db"},
		{"SourceDBInstanceIdentifier", "db"}, {"TargetDBInstanceIdentifier", "db"}, {"DBParameterGroupName", "pg"}, {"DBSubnetGroupName", "subgrp"},
		{"DBSnapshotIdentifier", "snapshot"}} {
		if name := form.Get(p.name); name != "" {
			add(p.kind, name)
		}
	}
	if arn := form.Get("ResourceName"); arn != "" {
		own.targets = append(own.targets, target{arn: arn})
	}
	all := []need{own}
	made := len(own.targets)
	switch {
	case action == "CreateDBInstance" || strings.HasPrefix(action, "Restore"):
		add("og", "default:postgres-17")
		all = []need{own, {"iam:CreateServiceLinkedRole", []target{{arn: "arn:aws:iam::" + account + ":role/aws-service-role/rds.amazonaws.com/AWSServiceRoleForRDS"}}}}
	case made == 0:
		own.targets = []target{{arn: "*"}}
		all = []need{own}
	}
	if form.Has("Tags.Tag.1.Key") {
		all = append(all, need{"rds:AddTagsToResource", own.targets[:1]})
	}
	return all
}
