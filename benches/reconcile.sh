#!/usr/bin/env bash
# What a reconcile without drift costs, as a ratio to what it cannot do without: PostgreSQL's own COPY of the same query and
# the fact store's listing of the same facts, both to /dev/null, measured in the same minutes on the same machine.
#
#   cargo build --release && benches/reconcile.sh
#   ROWS=5000000 ROUNDS=3 benches/reconcile.sh
#
# Everything it starts is in a temporary directory and ends with it. Needs what tests/run.sh installs.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
rows=${ROWS:-1000000}
rounds=${ROUNDS:-5}
factsync=${FACTSYNC:-$root/target/release/factsync}
key=e_0123456789_12345_osotesttoken01xiIn

[ -x "$factsync" ] || { echo "benches/reconcile.sh: $factsync is missing; run cargo build --release" >&2; exit 1; }

# PostgreSQL's own place, since Debian keeps the server's programs out of PATH.
for bin in "${PG_BIN:-}" /usr/lib/postgresql/1[4-9]/bin "$(pg_config --bindir 2>/dev/null || true)"; do
  if [ -n "$bin" ] && [ -x "$bin/initdb" ]; then break; fi
done
[ -x "$bin/initdb" ] || { echo "benches/reconcile.sh: PostgreSQL is missing; run tests/run.sh to install it" >&2; exit 1; }

work=$(mktemp -d /tmp/factsync-bench-XXXXXX)
serve=
as_server() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
finish() {
  if [ -n "$serve" ]; then kill "$serve" 2>/dev/null || true; wait "$serve" 2>/dev/null || true; fi
  if [ -e "$work/pg/postmaster.pid" ]; then as_server "$bin/pg_ctl" -D "$work/pg" -m immediate stop >/dev/null || true; fi
  rm -rf "$work"
}
trap finish EXIT
chmod 755 "$work"
mkdir "$work/pg"
if [ "$(id -u)" = 0 ]; then chown postgres: "$work/pg"; fi

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Prints the seconds, the seconds of CPU and the peak KiB that a command took; its stdout goes nowhere.
measure() {
  python3 - "$@" <<'PY'
import resource, subprocess, sys, time
begun = time.monotonic()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
seconds = time.monotonic() - begun
if done.returncode:
    sys.exit(f"{sys.argv[1:]} ended with {done.returncode}: {done.stderr.decode()}")
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(f"{seconds:.3f} {used.ru_utime + used.ru_stime:.3f} {used.ru_maxrss}")
PY
}

pg_port=$(free_port)
(cd / && as_server "$bin/initdb" -D "$work/pg" --username=postgres --auth=trust --encoding=UTF8 --locale=C.UTF-8 --no-sync >/dev/null)
(cd / && as_server "$bin/pg_ctl" -D "$work/pg" -w -l "$work/pg/log" \
  -o "-p $pg_port -k $work/pg -c listen_addresses=127.0.0.1 -c fsync=off -c autovacuum=off" start >/dev/null)
export DATABASE_URL="postgresql://postgres@127.0.0.1:$pg_port/postgres"
query='SELECT account_id, role, organization_id FROM organization_member'
# In no order that means anything, as the rows of a table that has lived.
"$bin/psql" -qX "$DATABASE_URL" -v ON_ERROR_STOP=1 <<SQL
CREATE TABLE organization_member (account_id text, role text, organization_id bigint);
INSERT INTO organization_member
  SELECT 'user_' || n, (ARRAY['member', 'admin', 'owner'])[1 + n % 3], n % 1000 FROM generate_series(1, $rows) n ORDER BY md5(n::text);
VACUUM ANALYZE organization_member;
SQL
cat >"$work/bench.yaml" <<YAML
version: 1
source: postgres
facts:
  has_role(User:_, String:_, Organization:_):
    db: app
    query: $query
dbs:
  app:
    connection_string: \$DATABASE_URL
YAML

# The development key is accepted on loopback.
unset OSO_AUTH OSO_URL
url=http://127.0.0.1:$(free_port)
"$factsync" serve --limits off --listen "${url#http://}" --state "$work/state" 2>"$work/serve.log" &
serve=$!
until curl -fs "$url/readyz" >/dev/null; do kill -0 "$serve" || { cat "$work/serve.log" >&2; exit 1; }; done

reconcile=("$factsync" reconcile "$work/bench.yaml" --target "$url" --plan unlimited)
copy=("$bin/psql" -qX "$DATABASE_URL" -c "COPY ($query) TO STDOUT")
listing=(curl -fsS -H "Authorization: Bearer $key" "$url/api/facts?predicate=has_role")

read -r seconds _ peak < <(measure "${reconcile[@]}" --perform-updates)
echo "first load of $rows facts: $seconds s, peak $((peak / 1024)) MiB"
echo "round    COPY  listing  reconcile (CPU, peak)       ratio"
for round in $(seq "$rounds"); do
  read -r a _ _ < <(measure "${copy[@]}")
  read -r b _ _ < <(measure "${listing[@]}")
  # --exit-code: drift would be an error here.
  read -r c cpu peak < <(measure "${reconcile[@]}" --exit-code)
  ratio=$(python3 -c "print(f'{$c / ($a + $b):.2f}')")
  printf '%5s  %5.2f s  %5.2f s  %5.2f s (%.2f s, %d MiB)  %s\n' "$round" "$a" "$b" "$c" "$cpu" $((peak / 1024)) "$ratio"
  echo "$ratio $((peak / 1024))" >>"$work/ratios"
done
sort -n "$work/ratios" | awk '{ r[NR] = $1; if ($2 > peak) peak = $2 } END { printf "median ratio %.2f, peak %d MiB\n", r[int((NR + 1) / 2)], peak }'
