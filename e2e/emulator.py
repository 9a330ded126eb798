"""moto's server, with what Amazon's EC2 does and moto 5.1.1 (Debian 13's) does not. Arguments are moto_server's."""
from moto.ec2.models import iam_instance_profile as profiles
from moto.server import main

# DescribeInstances no longer shows a profile that was taken away (moto forgets the association alone).
backend = profiles.IamInstanceProfileAssociationBackend
disassociate = backend.disassociate_iam_instance_profile


def disassociate_iam_instance_profile(self, association_id):
    association = disassociate(self, association_id)
    association.instance.iam_instance_profile = None
    return association


backend.disassociate_iam_instance_profile = disassociate_iam_instance_profile

main()
