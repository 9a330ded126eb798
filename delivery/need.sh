#!/usr/bin/env bash
# need.sh NAME: installs a program that the tests or `make run` need with the system's package manager.
# Does nothing, in milliseconds, when it is there.
set -euo pipefail

found() {
	local name=$1 program
	case $name in
	postgres) # not in PATH on Debian, Red Hat's own packages and Homebrew
		for program in "$(command -v initdb || true)" /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb \
			/opt/homebrew/opt/postgresql*/bin/initdb /usr/local/opt/postgresql*/bin/initdb; do
			if [ -x "$program" ] && [ -x "${program%initdb}postgres" ]; then return 0; fi
		done
		return 1
		;;
	*) PATH=$PATH:/usr/sbin command -v "$name" >/dev/null ;;
	esac
}

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# with_apt installs packages without starting what they bring: no database cluster, no service on any port.
with_apt() {
	local cluster=/etc/postgresql-common/createcluster.d/footfall.conf policy=/usr/sbin/policy-rc.d unit
	[ -e $policy ] && policy=
	# shellcheck disable=SC2064 # expand now
	trap "as_root rm -f $cluster $policy" EXIT
	as_root mkdir -p "${cluster%/*}"
	echo 'create_main_cluster = false' | as_root tee $cluster >/dev/null
	if [ -n "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null # 101: action forbidden, invoke-rc.d(8)
		as_root chmod 755 $policy
	fi
	as_root apt-get -q update
	as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 install "$@"
	if [ -d /run/systemd/system ]; then # else they would start at the next boot
		for unit in prometheus pgbouncer redis-server; do
			[[ " $* " != *" $unit "* ]] || as_root systemctl --quiet disable $unit
		done
	fi
}

name=$1
if found "$name"; then exit 0; fi

# dnf knows a package by a file in it, so only Debian's and Homebrew's names are needed.
case $name in
postgres) deb=postgresql rpm=/usr/bin/initdb brew=postgresql@17 ;;
promtool) deb=prometheus rpm=/usr/bin/promtool brew=prometheus ;;
dot) deb=graphviz rpm=/usr/bin/dot brew=graphviz ;;
firefox) deb=firefox-esr rpm=/usr/bin/firefox brew=firefox ;;
node) deb=nodejs rpm=/usr/bin/node brew=node ;;
java) deb=default-jre-headless rpm=/usr/bin/java brew=openjdk ;;
redis-server) deb=redis-server rpm=/usr/bin/redis-server brew=redis ;;
cc) deb="gcc libc6-dev" rpm=/usr/bin/gcc brew=gcc ;;
ansible-lint) deb="ansible-lint ansible" rpm=/usr/bin/ansible-lint brew=ansible-lint ;;
*) deb=$name rpm=/usr/bin/$name brew=$name ;;
esac

if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null && ! command -v brew >/dev/null; then
	echo "need.sh: $name is missing, and there is no sudo to install it with; have root run: $(realpath "$0") $name" >&2
	exit 1
fi
echo "need.sh: $name is missing on this machine, installing it" >&2
if command -v apt-get >/dev/null; then
	# shellcheck disable=SC2086 # a list of packages
	with_apt $deb
elif command -v dnf >/dev/null; then
	as_root dnf -q -y install "$rpm"
elif command -v brew >/dev/null; then
	brew install --quiet "$brew"
else
	echo "need.sh: none of apt-get, dnf and brew is here; install $name by hand and try again" >&2
	exit 1
fi
if ! found "$name"; then
	echo "need.sh: $name was installed but is not in PATH or the usual directories; add its directory to PATH" >&2
	exit 1
fi
