#!/usr/bin/env bash
# Installs the official Oso Cloud SDKs that tests/it/sdk.rs runs against the embedded fact store, unmodified and at
# pinned versions, and beside them the PostgreSQL drivers of examples/middleware: Python from PyPI, Node from npm.
# Does nothing where they already are. They go to $FACTSYNC_TOOLS (default: target/tools beside Cargo.toml).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
tools=${FACTSYNC_TOOLS:-$root/target/tools}
sdk=2.6.0
psycopg=3.3.9
pg=8.23.1
mkdir -p "$tools"

python=$tools/sdk-python
installed=$("$python/bin/python" -c 'import importlib.metadata as m; print(m.version("oso-cloud"), m.version("psycopg"), m.version("psycopg-binary"))' \
  2>/dev/null || true)
if [ "$installed" != "$sdk $psycopg $psycopg" ]; then
  python3 -m venv --clear "$python"
  "$python/bin/python" -m pip install --quiet --disable-pip-version-check "oso-cloud==$sdk" "psycopg[binary]==$psycopg"
fi

node=$tools/sdk-node
installed=$(node -p "['oso-cloud', 'pg'].map((name) => require('$node/node_modules/' + name + '/package.json').version).join(' ')" 2>/dev/null || true)
if [ "$installed" != "$sdk $pg" ]; then
  # In one command: npm takes out what the last one did not name.
  npm install --prefix "$node" --silent --no-audit --no-fund --no-save "oso-cloud@$sdk" "pg@$pg"
fi
