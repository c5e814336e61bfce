#!/usr/bin/env bash
# The compiler for a fuzz build: puts coverage counters into the crates that the targets are about, and into no other, because libFuzzer
# looks through all of them after each input. So these are the only crates that are compiled for fuzzing alone.
set -euo pipefail

compiler=$1
shift
case " $* " in
  *" --crate-name factsync "* | *" --crate-name factsync_fuzz "*)
    # What cargo-fuzz passes, less what needs a nightly compiler (the sanitizers).
    exec "$compiler" "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
      -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
      -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
esac
exec "$compiler" "$@"
