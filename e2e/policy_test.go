//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// account is moto's; so is the bucket that roles/fleet makes in it.
const (
	account     = "123456789012"
	fleetBucket = "footfall-" + account + "-" + region
	firstARN    = "arn:aws:ec2:" + region + ":" + account + ":instance/i-of-footfall-1"
	boundary    = "arn:aws:iam::" + account + ":policy/footfall-boundary"
)

// some is a value of a policy that may be one or a list.
type some []string

func (s *some) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*s = some{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(s))
}

// A policy is what of IAM's language the project's use: Allow, patterns of actions and resources, and conditions
// on strings. More is refused.
type policy []statement

type statement struct {
	Sid, Effect      string
	Action, Resource some
	Condition        map[string]map[string]some
}

func readPolicy(t *testing.T, file string) policy {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repoDir(), "ansible/roles/fleet", file))
	require.NoError(t, err)
	var document struct{ Statement policy }
	decoder := json.NewDecoder(strings.NewReader(strings.NewReplacer("{{ fleet_bucket }}", fleetBucket, "{{ fleet_first_arn }}", firstARN).Replace(string(text))))
	require.NoError(t, decoder.Decode(&document))
	require.NotEmpty(t, document.Statement)
	// Of a managed policy, without white space (IAM user guide, "IAM and AWS STS quotas").
	require.LessOrEqual(t, len(strings.Join(strings.Fields(string(text)), "")), 6144)
	ids := map[string]bool{}
	for _, s := range document.Statement {
		require.False(t, s.Sid != "" && ids[s.Sid], "%s has two statements %s: IAM takes each once", file, s.Sid)
		ids[s.Sid] = true
		require.Equal(t, "Allow", s.Effect)
		for operator := range s.Condition {
			require.Contains(t, []string{"StringEquals", "StringEqualsIfExists", "ForAllValues:StringEquals"}, operator)
		}
	}
	return document.Statement
}

// A target is a resource of a request, with the keys that IAM knows of it and of the request.
type target struct {
	arn  string
	keys map[string]string
}

// A need is an action and all its resources: each must be allowed, by any statement.
type need struct {
	action  string
	targets []target
}

func (n need) String() string { return fmt.Sprint(n.action, n.targets) }

// like says whether a pattern with * and ? of a policy is the whole value.
func like(pattern, value string) bool {
	pattern = strings.NewReplacer("${aws:PrincipalAccount}", account).Replace(pattern)
	pattern = strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(pattern))
	return regexp.MustCompile("^(?s:" + pattern + ")$").MatchString(value)
}

func (s statement) allows(action string, on target) bool {
	is := func(value string) func(string) bool { return func(pattern string) bool { return like(pattern, value) } }
	if !slices.ContainsFunc(s.Action, is(action)) || !slices.ContainsFunc(s.Resource, is(on.arn)) {
		return false
	}
	for operator, keys := range s.Condition {
		for key, wanted := range keys {
			value, known := on.keys[key]
			if known && !slices.ContainsFunc(wanted, func(pattern string) bool {
				return strings.ReplaceAll(pattern, "${aws:PrincipalAccount}", account) == value
			}) || !known && operator == "StringEquals" {
				return false
			}
		}
	}
	return true
}

func (p policy) allows(n need) bool {
	for _, on := range n.targets {
		if !slices.ContainsFunc(p, func(s statement) bool { return s.allows(n.action, on) }) {
			return false
		}
	}
	return len(n.targets) > 0
}

// A request is a line of what emulator.py writes.
type request struct {
	Who, Service, Method, Path, Query, Target, Body string
	Known                                           map[string]struct {
		Tags  map[string]string
		Owner string
	}
}

// kinds are the resources of EC2 by the prefix of their ids, as ARNs name them.
var kinds = map[string]string{"ami": "image", "eipalloc": "elastic-ip", "i": "instance", "key": "key-pair", "sg": "security-group",
	"subnet": "subnet", "vol": "volume", "vpc": "vpc"}

// needs is what IAM asks for where a request is made: the action on each of its resources, and what follows from it.
// From Amazon's Service Authorization Reference, the pages of EC2, S3, IAM, Route 53 and Systems Manager.
func (r request) needs() ([]need, error) {
	form, err := url.ParseQuery(r.Body)
	if err != nil {
		return nil, err
	}
	action := form.Get("Action")
	anything := []target{{arn: "*"}}
	switch {
	case r.Service == "sts":
		return nil, nil // GetCallerIdentity needs no permission
	case r.Service == "ssm":
		var what struct {
			Name, ResourceId string
			Tags             []any
		}
		if err := json.Unmarshal([]byte(r.Body), &what); err != nil {
			return nil, err
		}
		_, action, _ := strings.Cut(r.Target, ".")
		if own := what.Name + what.ResourceId; own == "" {
			return []need{{"ssm:" + action, anything}}, nil
		} else if strings.HasPrefix(own, "/footfall/") {
			all := []need{{"ssm:" + action, []target{{arn: "arn:aws:ssm:" + region + ":" + account + ":parameter" + own}}}}
			if what.Tags != nil {
				all = append(all, need{"ssm:AddTagsToResource", all[0].targets})
			}
			return all, nil
		}
		if strings.HasPrefix(what.Name, "/e2e/") { // the test's own, in the place of Debian's
			what.Name = "/aws/service/debian" + what.Name
		}
		return []need{{"ssm:" + action, []target{{arn: "arn:aws:ssm:" + region + "::parameter" + what.Name}}}}, nil
	case r.Service == "rds":
		return rdsNeeds(form), nil
	case r.Service == "elasticloadbalancing":
		return elbNeeds(form), nil
	case r.Service == "monitoring":
		return []need{{"cloudwatch:" + action, anything}}, nil
	case r.Service == "s3":
		action, err := r.s3Action()
		keys := map[string]string{"aws:ResourceAccount": account}
		if r.Who == hostID {
			keys["ec2:SourceInstanceARN"] = firstARN // the metadata service of the test gives no other host a key
		}
		if action == "CreateBucket" {
			keys = nil // it is nobody's yet
		}
		return []need{{"s3:" + action, []target{{"arn:aws:s3:::" + r.bucketAndKey(action), keys}}}}, err
	case r.Service == "route53":
		path := strings.Trim(strings.TrimPrefix(r.Path, "/2013-04-01"), "/")
		zone, set := strings.CutSuffix(path, "/rrset")
		switch {
		case path == "hostedzone":
			return []need{{"route53:ListHostedZones", anything}}, nil
		case strings.HasPrefix(path, "change/"):
			return []need{{"route53:GetChange", []target{{arn: "arn:aws:route53:::" + path}}}}, nil
		case set && r.Method == "POST":
			change := need{action: "route53:ChangeResourceRecordSets"}
			for _, t := range regexp.MustCompile(`<Type>(\w+)</Type>`).FindAllStringSubmatch(r.Body, -1) {
				change.targets = append(change.targets, target{"arn:aws:route53:::" + zone, map[string]string{"route53:ChangeResourceRecordSetsRecordTypes": t[1]}})
			}
			return []need{change}, nil
		case set:
			return []need{{"route53:ListResourceRecordSets", []target{{arn: "arn:aws:route53:::" + zone}}}}, nil
		}
		return nil, fmt.Errorf("%s %s is no request of a zone that is known here", r.Method, r.Path)
	case r.Service == "iam" && action == "ListAccountAliases":
		return []need{{"iam:" + action, anything}}, nil
	case r.Service == "iam":
		role := "arn:aws:iam::" + account + ":role/" + form.Get("RoleName")
		on := role
		if profile := form.Get("InstanceProfileName"); profile != "" {
			on = "arn:aws:iam::" + account + ":instance-profile/" + profile
		}
		keys := map[string]string{}
		switch {
		case form.Has("PermissionsBoundary"):
			keys["iam:PermissionsBoundary"] = form.Get("PermissionsBoundary")
		case action == "PutRolePolicy":
			keys["iam:PermissionsBoundary"] = boundary // the role's, since it was made
		}
		all := []need{{"iam:" + action, []target{{on, keys}}}}
		// Tags at the creation are another right (IAM user guide, "Tag IAM roles"); here an empty list of them is taken for some.
		if what, made := strings.CutPrefix(action, "Create"); made && strings.Contains(r.Body, "&Tags") {
			all = append(all, need{"iam:Tag" + what, []target{{arn: on}}})
		}
		if action == "AddRoleToInstanceProfile" {
			all = append(all, need{"iam:PassRole", []target{{arn: role}}})
		}
		return all, nil
	case strings.HasPrefix(action, "Describe"):
		return []need{{"ec2:" + action, anything}}, nil
	}

	// What is there already: with its tags, those of the request if it sets some, and its owner.
	var all []need
	own := need{action: "ec2:" + action}
	sent := tagsOf(form, "Tag.")
	var names []string
	for _, parameter := range slices.Sorted(maps.Keys(form)) {
		switch base, _, _ := strings.Cut(strings.TrimPrefix(parameter, "NetworkInterface.1."), "."); base {
		case "AllocationId", "GroupId", "ImageId", "InstanceId", "KeyName", "KeyPairId", "ResourceId", "SecurityGroupId", "SubnetId", "VolumeId", "VpcId":
			names = append(names, form[parameter]...)
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		prefix, _, _ := strings.Cut(name, "-")
		kind, ok := kinds[prefix]
		if form.Get("KeyName") == name {
			if action == "ImportKeyPair" {
				continue // made below
			}
			kind, ok = "key-pair", true
		}
		if !ok {
			return nil, fmt.Errorf("%s names %q, which is of no kind in kinds", action, name)
		}
		on := target{"arn:aws:ec2:" + region + ":" + account + ":" + kind + "/" + name, sent("aws:RequestTag/")}
		if kind == "image" {
			on.arn = "arn:aws:ec2:" + region + "::image/" + name
			on.keys["ec2:Owner"] = r.Known[name].Owner
		}
		for k, v := range r.Known[name].Tags {
			on.keys["aws:ResourceTag/"+k] = v
		}
		own.targets = append(own.targets, on)
	}
	// What is made by it, and its tags, which are set by an action that IAM asks for as well.
	made := map[string][]string{"AllocateAddress": {"elastic-ip"}, "CreateSecurityGroup": {"security-group"}, "CreateVolume": {"volume"},
		"ImportKeyPair": {"key-pair"}, "RunInstances": {"instance", "network-interface", "volume"}}
	for _, kind := range made[action] {
		on := target{"arn:aws:ec2:" + region + ":" + account + ":" + kind + "/new", map[string]string{}}
		for i := 1; form.Has(fmt.Sprintf("TagSpecification.%d.ResourceType", i)); i++ {
			specification := fmt.Sprintf("TagSpecification.%d.", i)
			if form.Get(specification+"ResourceType") != kind {
				continue
			}
			on.keys = tagsOf(form, specification+"Tag.")("aws:RequestTag/")
			tagged := target{on.arn, maps.Clone(on.keys)}
			tagged.keys["ec2:CreateAction"] = action
			all = append(all, need{"ec2:CreateTags", []target{tagged}})
		}
		own.targets = append(own.targets, on)
	}
	if profile := form.Get("IamInstanceProfile.Arn"); profile != "" {
		role := strings.Replace(profile, ":instance-profile/", ":role/", 1)
		all = append(all, need{"iam:PassRole", []target{{role, map[string]string{"iam:PassedToService": "ec2.amazonaws.com"}}}})
	}
	return append(all, own), nil
}

// tagsOf reads a request's tags below a parameter; what it returns names them as keys of IAM.
func tagsOf(form url.Values, below string) func(prefix string) map[string]string {
	return func(prefix string) map[string]string {
		tags := map[string]string{}
		for i := 1; form.Has(fmt.Sprintf("%s%d.Key", below, i)); i++ {
			tags[prefix+form.Get(fmt.Sprintf("%s%d.Key", below, i))] = form.Get(fmt.Sprintf("%s%d.Value", below, i))
		}
		return tags
	}
}

// bucketAndKey is what S3's ARN of an action's resource ends with.
func (r request) bucketAndKey(action string) string {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.Path, "/"), "/")
	switch {
	case !strings.HasSuffix(action, "Object"):
		return bucket
	case key == "": // many in one request, whose body is not kept
		return bucket + "/object"
	}
	return bucket + "/" + key
}

// s3Action is what IAM calls a request to S3.
func (r request) s3Action() (string, error) {
	query, err := url.ParseQuery(r.Query)
	if err != nil {
		return "", err
	}
	_, key, _ := strings.Cut(strings.TrimPrefix(r.Path, "/"), "/")
	switch {
	case key != "" && (r.Method == "GET" || r.Method == "HEAD"):
		return "GetObject", nil
	case key != "" && r.Method == "DELETE", query.Has("delete"):
		return "DeleteObject", nil
	case key != "":
		return "PutObject", nil
	}
	for name, action := range map[string]string{"accelerate": "AccelerateConfiguration", "acl": "BucketAcl", "encryption": "EncryptionConfiguration",
		"inventory": "InventoryConfiguration", "lifecycle": "LifecycleConfiguration", "object-lock": "BucketObjectLockConfiguration",
		"ownershipControls": "BucketOwnershipControls", "policy": "BucketPolicy", "publicAccessBlock": "BucketPublicAccessBlock",
		"requestPayment": "BucketRequestPayment", "tagging": "BucketTagging", "versioning": "BucketVersioning"} {
		if query.Has(name) {
			return map[string]string{"GET": "Get", "PUT": "Put"}[r.Method] + action, nil
		}
	}
	action, ok := map[string]string{"GET": "ListBucket", "HEAD": "ListBucket", "PUT": "CreateBucket"}[r.Method]
	if !ok {
		return "", fmt.Errorf("%s %s is no request of a bucket that is known here", r.Method, r.Path)
	}
	return action, nil
}

// needed is what the requests of an access key needed, each once.
func needed(t *testing.T, who string) map[string]need {
	t.Helper()
	file, err := os.Open(filepath.Join(shared(), "requests.json"))
	require.NoError(t, err)
	defer file.Close()
	all := map[string]need{}
	for lines := json.NewDecoder(file); lines.More(); {
		var r request
		require.NoError(t, lines.Decode(&r))
		if r.Who != who {
			continue
		}
		needs, err := r.needs()
		require.NoError(t, err)
		for _, n := range needs {
			all[n.String()] = n
		}
	}
	return all
}

// isLeast fails the test unless the policy allows all that was asked for, and less of it does not: without any one of its
// statements, or any one action of a statement, something is denied.
func (p policy) isLeast(t *testing.T, asked map[string]need) {
	t.Helper()
	assert.NotEmpty(t, asked)
	for _, n := range asked {
		assert.True(t, p.allows(n), "denied: %s", n)
	}
	for i, s := range p {
		for j, action := range s.Action {
			less := slices.Clone(p)
			less[i].Action = slices.Delete(slices.Clone(s.Action), j, j+1)
			denied := slices.ContainsFunc(slices.Collect(maps.Values(asked)), func(n need) bool { return !less.allows(n) })
			assert.True(t, denied, "%s: nothing needs %s", s.Sid, action)
		}
	}
}

// TestPolicies judges requests by hand: those of another project in the same account.
func TestPolicies(t *testing.T) {
	type tags = map[string]string
	ec2 := func(action, kind string, keys tags) need {
		return need{"ec2:" + action, []target{{"arn:aws:ec2:" + region + ":" + account + ":" + kind + "/x", keys}}}
	}
	s3From := func(instance, owner, action, name string) need {
		return need{"s3:" + action, []target{{"arn:aws:s3:::" + name, tags{"aws:ResourceAccount": owner, "ec2:SourceInstanceARN": instance}}}}
	}
	s3 := func(action, name string) need { return s3From(firstARN, account, action, name) }
	iam := func(action, name string, keys ...tags) need {
		return need{"iam:" + action, []target{{"arn:aws:iam::" + account + ":" + name, append(keys, nil)[0]}}}
	}
	ours, theirs := tags{"aws:ResourceTag/project": "footfall"}, tags{"aws:ResourceTag/project": "another"}
	door := tags{"aws:ResourceTag/project": "footfall", "aws:ResourceTag/Name": "footfall-operators"}
	policies := map[string]policy{"provision": readPolicy(t, "files/provision-policy.json"), "deploy": readPolicy(t, "files/deploy-policy.json"),
		"host": readPolicy(t, "templates/host-policy.json"), "zones": readPolicy(t, "files/zones-policy.json"), "balancer": readPolicy(t, "files/balancer-policy.json")}
	rds := func(action, kind, name string) need {
		return need{"rds:" + action, []target{{arn: "arn:aws:rds:" + region + ":" + account + ":" + kind + ":" + name}}}
	}
	elb := func(action, name string) need {
		return need{"elasticloadbalancing:" + action, []target{{arn: "arn:aws:elasticloadbalancing:" + region + ":" + account + ":" + name}}}
	}
	ssm := func(action, name string) need {
		return need{"ssm:" + action, []target{{arn: "arn:aws:ssm:" + region + ":" + account + ":parameter" + name}}}
	}
	for _, tt := range []struct {
		name      string
		need      need
		allowedTo string // separated by spaces
	}{
		{"end an instance", ec2("TerminateInstances", "instance", ours), "provision"},
		{"end another's instance", ec2("TerminateInstances", "instance", theirs), ""},
		{"end an instance without tags", ec2("TerminateInstances", "instance", nil), ""},
		{"give another's instance a role", ec2("AssociateIamInstanceProfile", "instance", theirs), ""},
		{"reserve an address", ec2("AllocateAddress", "elastic-ip", tags{"aws:RequestTag/project": "footfall"}), "provision"},
		{"reserve an address without the tag", ec2("AllocateAddress", "elastic-ip", nil), ""},
		{"move another's address here", need{"ec2:AssociateAddress", append(ec2("", "elastic-ip", theirs).targets, ec2("", "instance", ours).targets...)}, ""},
		{"move the address to another's", need{"ec2:AssociateAddress", append(ec2("", "elastic-ip", ours).targets, ec2("", "instance", theirs).targets...)}, ""},
		{"release another's address", ec2("ReleaseAddress", "elastic-ip", theirs), ""},
		{"attach another's volume", need{"ec2:AttachVolume", append(ec2("", "volume", theirs).targets, ec2("", "instance", ours).targets...)}, ""},
		{"delete another's volume", ec2("DeleteVolume", "volume", theirs), ""},
		{"take another's volume by a tag", ec2("CreateTags", "volume", tags{"aws:ResourceTag/project": "another", "aws:RequestTag/project": "footfall"}), ""},
		{"launch a stranger's image", need{"ec2:RunInstances", []target{{"arn:aws:ec2:" + region + "::image/x", tags{"ec2:Owner": "999999999999"}}}}, ""},
		{"launch into another's group", ec2("RunInstances", "security-group", theirs), ""},
		{"launch an instance without the tag", ec2("RunInstances", "instance", nil), ""},
		{"open another's group", ec2("AuthorizeSecurityGroupIngress", "security-group", theirs), ""},
		{"open the operators' group", ec2("AuthorizeSecurityGroupIngress", "security-group", door), "deploy provision"},
		{"open the service's group", ec2("AuthorizeSecurityGroupIngress", "security-group", ours), "provision"},
		{"delete another's key", ec2("DeleteKeyPair", "key-pair", theirs), ""},
		{"read an object", s3("GetObject", fleetBucket+"/x"), "host"},
		{"write an object", s3("PutObject", fleetBucket+"/x"), "host"},
		{"write an object from a host that is no longer the first", s3From(firstARN+"-before", account, "PutObject", fleetBucket+"/x"), ""},
		{"write into a stranger's bucket of that name", s3From(firstARN, "999999999999", "PutObject", fleetBucket+"/x"), ""},
		{"set up a stranger's bucket of that name", s3From("", "999999999999", "PutLifecycleConfiguration", fleetBucket), ""},
		{"set up the bucket", s3("PutLifecycleConfiguration", fleetBucket), "provision"},
		{"read another bucket's object", s3("GetObject", "another/x"), ""},
		{"empty the bucket's versions", s3("DeleteObjectVersion", fleetBucket+"/x"), ""},
		{"stop keeping versions", s3("PutBucketVersioning", fleetBucket), "provision"},
		{"make the bucket", s3("CreateBucket", fleetBucket), "provision"},
		{"set up another's bucket", s3("PutLifecycleConfiguration", "another"), ""},
		{"set up a bucket of the same prefix", s3("PutLifecycleConfiguration", "footfall-archive"), ""},
		{"remove the bucket", s3("DeleteBucket", fleetBucket), ""},
		{"make the role", iam("CreateRole", "role/footfall-backup", tags{"iam:PermissionsBoundary": boundary}), "provision"},
		{"make the role without a boundary", iam("CreateRole", "role/footfall-backup"), ""},
		{"make the role with another boundary", iam("CreateRole", "role/footfall-backup", tags{"iam:PermissionsBoundary": "arn:aws:iam::aws:policy/AdministratorAccess"}), ""},
		{"give a role without a boundary more rights", iam("PutRolePolicy", "role/footfall-backup"), ""},
		{"take the boundary away", iam("DeleteRolePermissionsBoundary", "role/footfall-backup"), ""},
		{"change the boundary", iam("CreatePolicyVersion", "policy/footfall-boundary"), ""},
		{"grow another's volume", ec2("ModifyVolume", "volume", theirs), ""},
		{"write another role's policy", iam("PutRolePolicy", "role/admin"), ""},
		{"hand on another role", iam("PassRole", "role/admin"), ""},
		{"hand the role to another service", need{"iam:PassRole", []target{{"arn:aws:iam::" + account + ":role/footfall-backup",
			tags{"iam:PassedToService": "lambda.amazonaws.com"}}}}, ""},
		{"let it be assumed by others", iam("UpdateAssumeRolePolicy", "role/footfall-backup"), ""},
		{"change another kind of record", need{"route53:ChangeResourceRecordSets", []target{{"arn:aws:route53:::hostedzone/x",
			tags{"route53:ChangeResourceRecordSetsRecordTypes": "MX"}}}}, ""},
		{"remove the managed database", rds("DeleteDBInstance", "db", "footfall"), "zones"},
		{"remove another database", rds("DeleteDBInstance", "db", "footfall-of-another"), ""},
		{"make another database", rds("CreateDBInstance", "db", "another"), ""},
		{"remove another's snapshot", rds("DeleteDBSnapshot", "snapshot", "another-1"), ""},
		{"restart the managed database", rds("RebootDBInstance", "db", "footfall"), ""},
		{"read the managed database's password", ssm("GetParameter", "/footfall/rds/master"), "zones"},
		{"read another secret", ssm("GetParameter", "/another/secret"), ""},
		{"take hosts out of the balancer", elb("DeregisterTargets", "targetgroup/footfall-80/x"), "balancer"},
		{"send the balancer's visitors elsewhere", elb("CreateListener", "loadbalancer/net/footfall/x"), "balancer"},
		{"take hosts out of another balancer", elb("DeregisterTargets", "targetgroup/footfall-of-another/x"), ""},
		{"remove another balancer", elb("DeleteLoadBalancer", "loadbalancer/net/another/x"), ""},
		{"remove another kind of balancer", elb("DeleteLoadBalancer", "loadbalancer/app/footfall/x"), ""},
		{"make another service's role", iam("CreateServiceLinkedRole", "role/aws-service-role/ecs.amazonaws.com/AWSServiceRoleForECS"), ""},
		{"hand the role on", iam("PassRole", "role/footfall-backup"), "provision"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for name, p := range policies {
				assert.Equal(t, slices.Contains(strings.Fields(tt.allowedTo), name), p.allows(tt.need), name)
			}
		})
	}

	t.Run("a role that is made with tags", func(t *testing.T) {
		needs, err := request{Service: "iam", Body: "Action=CreateRole&RoleName=footfall-backup&PermissionsBoundary=" + boundary + "&Tags.member.1.Key=project"}.needs()
		require.NoError(t, err)
		require.Len(t, needs, 2)
		assert.True(t, policies["provision"].allows(needs[0]))
		assert.Equal(t, "iam:TagRole", needs[1].action)
		assert.False(t, policies["provision"].allows(needs[1]))
	})

	t.Run("the boundary holds all that the first host may", func(t *testing.T) {
		least := readPolicy(t, "files/boundary-policy.json")
		for _, s := range policies["host"] {
			for _, action := range s.Action {
				bucketOrObject := strings.ReplaceAll(s.Resource[0], "*", "x")
				assert.True(t, least.allows(need{action, []target{{bucketOrObject, tags{"aws:ResourceAccount": account}}}}), action)
			}
		}
		assert.False(t, least.allows(s3("GetObject", "another/x")))
		for _, action := range []string{"DeleteObjectVersion", "PutBucketPolicy", "PutBucketVersioning", "PutLifecycleConfiguration"} {
			assert.False(t, least.allows(s3(action, fleetBucket+"/x")), "a host that was broken into could remove old backups: %s", action)
			assert.False(t, least.allows(s3(action, fleetBucket)), action)
		}
		assert.True(t, least.allows(rds("DescribeDBInstances", "db", "footfall")))
		assert.True(t, least.allows(need{"cloudwatch:GetMetricStatistics", []target{{arn: "*"}}}))
		assert.False(t, least.allows(rds("ModifyDBInstance", "db", "footfall")))
	})

	t.Run("GitHub", func(t *testing.T) {
		trust := readPolicy(t, "files/github-trust.json")
		require.Len(t, trust, 1)
		assert.Equal(t, some{"sts:AssumeRoleWithWebIdentity"}, trust[0].Action)
		assert.Equal(t, map[string]map[string]some{"StringEquals": {
			"token.actions.githubusercontent.com:aud": {"sts.amazonaws.com"},
			"token.actions.githubusercontent.com:sub": {"repo:OWNER@OWNER_ID/REPOSITORY@REPOSITORY_ID:environment:production"},
		}}, trust[0].Condition)
	})
}
