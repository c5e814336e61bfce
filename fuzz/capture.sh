#!/usr/bin/env bash
# Captures the seeds of the target `tree` again, after the queries of tests/it/binding changed or with a new version of PostgreSQL:
#
#   fuzz/capture.sh 15 /usr/lib/postgresql/15/bin
#   fuzz/capture.sh 18 target/tools/postgres18/bin
set -euo pipefail

version=$1
bin=$(cd "$2" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")"
program=${CARGO_TARGET_DIR:-$PWD/../target}/debug/factsync-fuzz
home=$(mktemp -d)
# A server does not run as root.
as() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; else "$@"; fi; }
chmod 755 "$home"
mkdir "$home/data" && if [ "$(id -u)" = 0 ]; then chown 65534:65534 "$home/data"; fi
trap 'as "$bin/pg_ctl" -D "$home/data" -m immediate -s stop; rm -rf "$home"' EXIT
as "$bin/initdb" -D "$home/data" -U postgres -A trust --no-sync >/dev/null
as "$bin/pg_ctl" -D "$home/data" -s -w -l "$home/data/log" \
  -o "-c listen_addresses=127.0.0.1 -c port=54329 -c unix_socket_directories= -c fsync=off" start
url=postgresql://postgres@127.0.0.1:54329/postgres
FACTSYNC_FUZZ=capture CAPTURE_URL='' CAPTURE_VERSION='' "$program" | psql -q -v ON_ERROR_STOP=1 "$url"
rm -f "corpus/tree/$version"-*
FACTSYNC_FUZZ=capture CAPTURE_URL=$url CAPTURE_VERSION=$version "$program"
ls "corpus/tree/$version"-* | wc -l
