#!/usr/bin/env bash
# Makes the corpus of a target as small as it can be while it reaches the same code: fuzz/merge.sh csv
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
program=${CARGO_TARGET_DIR:-$PWD/../target}/debug/factsync-fuzz
for target in "$@"; do
  fresh=$(mktemp -d)
  FACTSYNC_FUZZ=$target "$program" -merge=1 -timeout=30 -rss_limit_mb=1024 "$fresh" "corpus/$target"
  rm -f "corpus/$target"/*
  cp "$fresh"/* "corpus/$target/"
  rm -rf "$fresh"
done
du -sb corpus/*
