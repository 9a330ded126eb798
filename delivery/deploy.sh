#!/usr/bin/env bash
# deploy.sh: brings DEPLOY_VERSION to the fleet with ansible/deploy.yml, as an image from IMAGE if that is set. If it
# fails, brings back the version that SITE_URL (https://…) served before, and fails all the same.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

version=${DEPLOY_VERSION:?"is not set, want a released version, such as 1.4.1"}
site=${SITE_URL:?"is not set, want the address of the page, such as https://count.example.org"}

if ! before=$(curl --fail --silent --show-error --max-time 10 "$site/version" | sed -n 's/.*"version": *"\([^"]*\)".*/\1/p') ||
	[ -z "$before" ]; then
	echo "deploy.sh: $site/version does not say what runs now: there would be no way back; run ansible-playbook site.yml first" >&2
	exit 1
fi
deploy() {
	./ansible.sh ansible-playbook deploy.yml -e "version=$1" ${IMAGE:+-e "app_image=$IMAGE"}
}

echo "deploy.sh: $before runs, deploying $version"
if deploy "$version"; then
	exit 0
fi
echo "deploy.sh: $version failed, bringing $before back" >&2
deploy "$before"
exit 1
