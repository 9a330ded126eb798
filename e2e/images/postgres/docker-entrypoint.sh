#!/bin/bash
# First start: make the cluster, its superuser and database from POSTGRES_USER, POSTGRES_PASSWORD,
# POSTGRES_DB (each also as ..._FILE) and POSTGRES_INITDB_ARGS. Every start: PostgreSQL as uid 999.
set -euo pipefail

case ${1:-} in
  -*) set -- postgres "$@" ;;
  postgres) ;;
  *) exec "$@" ;;
esac

if [ "$(id -u)" = 0 ]; then
  mkdir -p "$PGDATA"
  find "$PGDATA" ! -user postgres -exec chown postgres {} +
  chmod 700 "$PGDATA"
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi

setting() { # NAME DEFAULT
  local file="${1}_FILE"
  if [ -n "${!file:-}" ]; then cat "${!file}"; else echo "${!1:-$2}"; fi
}

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  user=$(setting POSTGRES_USER postgres)
  password=$(setting POSTGRES_PASSWORD '')
  database=$(setting POSTGRES_DB "$user")
  if [ -z "$password" ]; then
    echo "make the cluster in $PGDATA: POSTGRES_PASSWORD is not set" >&2
    exit 1
  fi
  # shellcheck disable=SC2086  # several arguments in one variable, as in the official image
  initdb --username="$user" --pwfile=<(echo "$password") --auth-local=trust --auth-host=scram-sha-256 \
    ${POSTGRES_INITDB_ARGS:-}
  echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
  # No TCP until the database is there: a client that gets through finds everything.
  pg_ctl --wait start -o "-c listen_addresses=''"
  [ "$database" = postgres ] || createdb --username="$user" "$database"
  pg_ctl --wait --mode=fast stop
fi
exec "$@"
