#!/usr/bin/env bash
# Installs the official Oso Cloud SDKs that tests/it/sdk.rs runs against the embedded fact store, unmodified and at
# pinned versions: Python from PyPI, Node from npm. Does nothing where they already are.
# They go to $FACTSYNC_TOOLS (default: target/tools beside Cargo.toml).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
tools=${FACTSYNC_TOOLS:-$root/target/tools}
version=2.6.0
mkdir -p "$tools"

python=$tools/sdk-python
installed=$("$python/bin/python" -c 'import importlib.metadata as m; print(m.version("oso-cloud"))' 2>/dev/null || true)
if [ "$installed" != "$version" ]; then
  python3 -m venv --clear "$python"
  "$python/bin/python" -m pip install --quiet --disable-pip-version-check "oso-cloud==$version"
fi

node=$tools/sdk-node
installed=$(node -p "require('$node/node_modules/oso-cloud/package.json').version" 2>/dev/null || true)
if [ "$installed" != "$version" ]; then
  npm install --prefix "$node" --silent --no-audit --no-fund --no-save "oso-cloud@$version"
fi
