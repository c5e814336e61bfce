#!/usr/bin/env bash
# Builds the fuzz targets and runs each of them for FUZZ_SECONDS seconds (60), FUZZ_JOBS at a time (2), from the committed corpus and the
# seeds that the repository has anyway. Fails on the first crash, hang or excess of memory, and prints the input and how to run it again.
#
#   fuzz/run.sh                              every target
#   fuzz/run.sh csv tree                     these
#   fuzz/run.sh csv fuzz/found/csv/crash-…   one input, once, with what it panics with
#   FUZZ_SECONDS=3600 FUZZ_KEEP=1 fuzz/run.sh csv    an hour, and keep what reached new code in the corpus
set -euo pipefail

called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
seconds=${FUZZ_SECONDS:-60}
jobs=${FUZZ_JOBS:-2}
all=(config csv http pgoutput signature tree)

# Not locked: what is locked here follows ../Cargo.lock, so that a new dependency of factsync is not a failure of this build.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/../target}
CARGO_INCREMENTAL=0 RUSTC_WRAPPER=$PWD/rustc.sh cargo build
program=$CARGO_TARGET_DIR/debug/factsync-fuzz

# The longest input of each: what is read whole from outside has megabytes only in seeds of its own.
max_len() {
  case $1 in
    tree) echo 65536 ;;
    config | http) echo 8192 ;;
    *) echo 4096 ;;
  esac
}

# Files that are inputs already.
seeds() {
  case $1 in
    config) echo ../tests/fixtures/config ;;
  esac
}

run_one() {
  local target=$1 work=$2 found=$PWD/found/$1/ seed
  mkdir -p "$found" "$work/$target"
  local folders=("$work/$target")
  if [ -d "corpus/$target" ]; then folders+=("corpus/$target"); fi
  for seed in $(seeds "$target"); do folders+=("$seed"); done
  if [ -n "${FUZZ_KEEP:-}" ]; then folders=("${folders[@]:1}"); fi
  # A gigabyte: what a sidecar may never have. Half a minute: what no input of these sizes may take, on a busy machine either.
  FACTSYNC_FUZZ=$target FACTSYNC_FUZZ_HOME=$work/$target.home "$program" -max_total_time="$seconds" -timeout=30 -rss_limit_mb=1024 \
    -max_len="$(max_len "$target")" $([ -e "dictionaries/$target" ] && echo "-dict=dictionaries/$target") -artifact_prefix="$found" \
    -print_final_stats=1 "${folders[@]}" >"$work/$target.log" 2>&1
}

report() {
  local target=$1 log=$2 input
  echo "=== fuzz target $target failed" >&2
  grep -vE '^#[0-9]+|^INFO|^NEW_FUNC' "$log" | tail -60 >&2
  input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -1)
  if [ -n "$input" ]; then
    echo "=== the input in base64:" >&2
    base64 -w 140 "$input" | head -c 20000 >&2
    echo "=== run it again:  base64 -d >input   (paste it, Ctrl-D), then  fuzz/run.sh $target input" >&2
  fi
}

if [ $# -eq 2 ] && [ -f "$called_from/$2" ]; then
  FACTSYNC_FUZZ=$1 exec "$program" -timeout=30 -rss_limit_mb=1024 "$called_from/$2"
fi

if [ $# -gt 0 ]; then targets=("$@"); else targets=("${all[@]}"); fi
# In memory, where there is such a place: a target writes a file for each input.
work=$(TMPDIR=$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}") mktemp -d)
trap 'rm -rf "$work"' EXIT
# A check that cannot fail is none.
if run_one planted "$work"; then
  echo "the planted mistake was not found within $seconds s" >&2
  exit 1
fi
grep -q "the planted mistake" "$work/planted.log"
echo "fuzz target planted: found"
rm -rf found/planted
failed=0
running=()
declare -A of
finish() {
  local done_pid status=0
  wait -n -p done_pid "${running[@]}" || status=$?
  local target=${of[$done_pid]} left=() pid
  for pid in "${running[@]}"; do if [ "$pid" != "$done_pid" ]; then left+=("$pid"); fi; done
  running=("${left[@]}")
  if [ "$status" != 0 ]; then
    failed=1
    report "$target" "$work/$target.log"
  else
    echo "fuzz target $target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$work/$target.log") inputs," \
      "$(sed -n 's/^stat::peak_rss_mb: *//p' "$work/$target.log") MB, $(grep -o 'cov: [0-9]*' "$work/$target.log" | tail -1)"
  fi
}
for target in "${targets[@]}"; do
  if [ "${#running[@]}" -ge "$jobs" ]; then finish; fi
  run_one "$target" "$work" &
  running+=($!)
  of[$!]=$target
done
while [ "${#running[@]}" -gt 0 ]; do finish; done
exit "$failed"
