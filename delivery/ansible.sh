#!/usr/bin/env bash
# ansible.sh PROGRAM ARGUMENT…: runs one of Ansible's programs in ansible/: the one on this machine if it is new enough
# (Debian 13 and later), else, and in GitHub's workflows, Debian 13's in a container, the one that the end-to-end tests use.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# In a workflow the key and the hosts' keys are secrets, not files.
if [ -n "${DEPLOY_SSH_KEY:-}" ]; then
	eval "$(ssh-agent -s)" >/dev/null
	trap 'ssh-agent -k >/dev/null' EXIT
	ssh-add -q - <<<"$DEPLOY_SSH_KEY"
	unset DEPLOY_SSH_KEY
fi
[ -d ~/.ssh ] || mkdir -m 700 ~/.ssh
while read -r host; do
	[ -z "$host" ] || grep -qsxF "$host" ~/.ssh/known_hosts || echo "$host" >>~/.ssh/known_hosts
done <<<"${DEPLOY_KNOWN_HOSTS:-}"

# One's own machines come before EC2, for every program.
[ ! -f ansible/inventory/static.yml ] || export ANSIBLE_INVENTORY=${ANSIBLE_INVENTORY:-inventory/static.yml}

# GitHub's runners have an ansible-core of their own, without the collections and boto3.
new_enough() {
	[ -z "${GITHUB_ACTIONS:-}" ] && command -v ansible >/dev/null && command -v "$1" >/dev/null &&
		ansible --version | awk 'NR == 1 { split($0, v, /[^0-9]+/); exit !(v[2] > 2 || v[3] >= 19) }'
}

if new_enough "$1"; then
	cd ansible
	"$@"
elif docker version >/dev/null 2>&1; then
	docker build --quiet --tag footfall-controller e2e/images/controller >/dev/null
	# The agent, the cloud's short-lived keys and the registry's password go in by name: their values are on no command line. The container ends when
	# tasks/let-in has taken out the rule that let this machine in; an interrupt is for what runs in it, not for the shell.
	tty=
	if [ -t 0 ]; then tty=--tty; fi
	docker run --rm --init --env TINI_KILL_PROCESS_GROUP=1 --interactive $tty --network host --workdir "$PWD/ansible" --volume "$PWD:$PWD" --volume ~/.ssh:/ssh \
		${SSH_AUTH_SOCK:+--volume "$SSH_AUTH_SOCK:$SSH_AUTH_SOCK" --env SSH_AUTH_SOCK} \
		${ANSIBLE_VAULT_PASSWORD_FILE:+--volume "$ANSIBLE_VAULT_PASSWORD_FILE:$ANSIBLE_VAULT_PASSWORD_FILE:ro"} \
		--env USER --env ANSIBLE_INVENTORY --env ANSIBLE_VAULT_PASSWORD_FILE --env ANSIBLE_ASK_VAULT_PASS --env AWS_REGION --env AWS_ACCESS_KEY_ID --env AWS_SECRET_ACCESS_KEY --env AWS_SESSION_TOKEN \
		--env REGISTRY_USER --env REGISTRY_PASSWORD footfall-controller \
		sh -c 'ln -s /ssh ~/.ssh; trap : INT TERM; "$@"; status=$?
			while grep -qs "tasks/let-i[n]" /proc/[0-9]*/cmdline; do sleep 0.2; done; exit $status' sh "$@"
else
	echo "ansible.sh: $1 of ansible-core 2.19 or newer is needed: install Debian 13's packages ansible and ansible-lint, or start a Docker engine" >&2
	exit 1
fi
