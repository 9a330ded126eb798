"""moto's server, with what Amazon's EC2 does and moto 5.1.1 (Debian 13's) does not, and a record of what was asked.

Arguments are moto_server's. Each request that carries a key becomes a line of requests.json: who asked what, and the tags
and owners of the resources that it names, as they are when it comes. Policies are judged by this.
"""
import io, json, random, re, threading, time

import moto.server
from moto.ec2 import ec2_backends
from moto.ec2.models import elastic_ip_addresses, iam_instance_profile, security_groups
from moto.ec2.responses import instances
from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE
from moto.elbv2.models import FakeTargetGroup
from moto.rds.exceptions import DBParameterGroupNotFoundError
from moto.rds.models import DBInstance, DBParameterGroup, RDSBackend
from werkzeug.serving import run_simple

ACCOUNT = "123456789012"  # moto's
writing = threading.Lock()


# DescribeInstances no longer shows a profile that was taken away: moto forgets the association alone.
def disassociate(self, association_id, original=iam_instance_profile.IamInstanceProfileAssociationBackend.disassociate_iam_instance_profile):
    association = original(self, association_id)
    association.instance.iam_instance_profile = None
    return association


iam_instance_profile.IamInstanceProfileAssociationBackend.disassociate_iam_instance_profile = disassociate


# An instance keeps its metadata options and shows them.
def run_instances(self, original=instances.InstanceResponse.run_instances):
    before = {i.id for i in self.ec2_backend.all_instances()}
    answer = original(self)
    for i in self.ec2_backend.all_instances():
        if i.id not in before:
            i.metadata_options = {k: self._get_param("MetadataOptions." + k) for k in ("HttpTokens", "HttpEndpoint", "HttpPutResponseHopLimit")}
    return answer


instances.InstanceResponse.run_instances = run_instances
OPTIONS = """<metadataOptions><state>applied</state>{% set o = instance.metadata_options or {} %}
<httpTokens>{{ o.HttpTokens or 'optional' }}</httpTokens><httpEndpoint>{{ o.HttpEndpoint or 'enabled' }}</httpEndpoint>
<httpPutResponseHopLimit>{{ o.HttpPutResponseHopLimit or 1 }}</httpPutResponseHopLimit></metadataOptions>"""
for name in ("EC2_RUN_INSTANCES", "EC2_DESCRIBE_INSTANCES"):
    setattr(instances, name, getattr(instances, name).replace("<launchTime>", OPTIONS + "<launchTime>"))

# A range that is revoked is gone, whatever its description: moto compares that too, and keeps a range in several rules.
def revoke(self, group_name_or_id, ip_protocol, from_port, to_port, ip_ranges, source_groups=None, *rest, vpc_id=None,
           original=security_groups.SecurityGroupBackend.revoke_security_group_ingress, **more):
    if source_groups:
        return original(self, group_name_or_id, ip_protocol, from_port, to_port, ip_ranges, source_groups, *rest, vpc_id=vpc_id, **more)
    group = self.get_security_group_by_name_or_id(group_name_or_id, vpc_id)
    gone = {r.get("CidrIp") for r in ip_ranges}
    for rule in group.ingress_rules:
        if (rule.ip_protocol, rule.from_port, rule.to_port) == (ip_protocol, int(from_port), int(to_port)):
            rule.ip_ranges = [r for r in rule.ip_ranges if r.get("CidrIp") not in gone]
    group.ingress_rules = [r for r in group.ingress_rules if r.ip_ranges or r.source_groups or r.prefix_list_ids]
    self.sg_old_ingress_ruls[group.id] = group.ingress_rules.copy()


security_groups.SecurityGroupBackend.revoke_security_group_ingress = revoke

# An elastic address can be reached: moto's are loopback. This range is nobody's (RFC 5737).
elastic_ip_addresses.random_ip = lambda: f"203.0.113.{random.randint(128, 254)}"

# DescribeTags calls an address what EC2 calls it.
EC2_PREFIX_TO_RESOURCE["eipalloc"] = "elastic-ip"


# A managed database of storage type gp3 has its rates, names its minor release, and has the parameters of its engine; a
# group of parameters that is not there is an error.
def instance(self, *args, original=DBInstance.__init__, **kwargs):
    original(self, *args, **kwargs)
    self.iops, self.storage_throughput = self.iops or 3000, 125
    self.engine_version += "" if "." in self.engine_version else ".6"


def parameters(self, *args, original=DBParameterGroup.__init__, **kwargs):
    original(self, *args, **kwargs)
    for name, type in ("rds.force_ssl", "boolean"), ("checkpoint_timeout", "integer"), ("max_wal_size", "integer"):
        self.parameters[name] = {"ParameterName": name, "DataType": type, "IsModifiable": True}


def parameter_groups(self, asked, original=RDSBackend.describe_db_parameter_groups):
    name = asked.get("db_parameter_group_name") or asked.get("name")
    found = original(self, {"db_parameter_group_name": name})
    if name and not found:
        raise DBParameterGroupNotFoundError(name)
    return found


# What is restored to a moment has its standby and its protection from the request, not from its source.
def restored(self, source, target, overrides, original=RDSBackend.restore_db_instance_to_point_in_time):
    database = original(self, source, target, overrides)
    database.deletion_protection, database.multi_az = overrides.get("deletion_protection", False), overrides.get("multi_az", False)
    return database


RDSBackend.restore_db_instance_to_point_in_time = restored
# With a standby it says in which zone that is.
DBInstance.secondary_availability_zone = property(lambda self: self.region + "b" if self.multi_az else None)
DBInstance.__init__, DBParameterGroup.__init__, RDSBackend.describe_db_parameter_groups = instance, parameters, parameter_groups


# A target that is deregistered drains for as long as its group says.
def deregister(self, targets, original=FakeTargetGroup.deregister):
    original(self, targets)
    for target in targets:
        self.deregistered_targets[target["id"]]["since"] = time.time()


def health_for(self, target, backend, original=FakeTargetGroup.health_for):
    health, left = original(self, target, backend), self.deregistered_targets.get(target["id"], {})
    if time.time() - left.get("since", 0) < int(self.attributes["deregistration_delay.timeout_seconds"]):
        health.status, health.reason = "draining", "Target.DeregistrationInProgress"
    return health


FakeTargetGroup.deregister, FakeTargetGroup.health_for = deregister, health_for


def known(region, text):
    """Tags and owners of what a request names."""
    backend = ec2_backends[ACCOUNT][region]
    found = {i: {"tags": backend.tags.get(i, {}), "owner": getattr(backend.amis.get(i), "owner_id", "")}
             for i in re.findall(r"\b[a-z]+-[0-9a-f]{8,}\b", text)}
    return found | {name: {"tags": {t["key"]: t["value"] for t in key.get_tags()}} for name, key in backend.keypairs.items()}


def recorded(application):
    def answer(environ, start):
        credential = re.search(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        if credential:
            who, region, service = credential.groups()
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            text = "" if service == "s3" else body.decode()
            line = {"who": who, "service": service, "method": environ["REQUEST_METHOD"], "path": environ["PATH_INFO"],
                    "query": environ.get("QUERY_STRING", ""), "target": environ.get("HTTP_X_AMZ_TARGET", ""), "body": text,
                    "known": known(region, text) if service == "ec2" else {}}
            with writing, open("requests.json", "a") as file:
                print(json.dumps(line), file=file)
        return application(environ, start)
    return answer


moto.server.run_simple = lambda host, port, application, **how: run_simple(host, port, recorded(application), **how)
moto.server.main()
