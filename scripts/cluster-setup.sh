#!/usr/bin/env bash
# What a Temporal server on PostgreSQL needs, for test/cluster: Temporal's server and its schema tool, built from the Go module proxy into our
# cache, and apt's PostgreSQL. Prints two folders on stdout, Temporal's and that of PostgreSQL's programs, and everything else on stderr. Installs
# only what is missing and says so; run again, it only looks. Starts nothing: a PostgreSQL that it installs has no database and no service.
#
#   scripts/cluster-setup.sh
#     VMFERRY_CACHE   where Temporal is kept, in temporal-server-VERSION (default ~/.cache/vmferry)
set -euo pipefail

readonly SERVER=go.temporal.io/server@v1.29.1    # the server that scripts/setup.sh's dev server has in it
readonly OLDEST_POSTGRES=12                      # of Temporal's plug-in postgres12
readonly CREATE_CLUSTER=/etc/postgresql-common/createcluster.conf

cache=${VMFERRY_CACHE:-$HOME/.cache/vmferry}
folder=$cache/temporal-server-${SERVER#*@}
exec 3>&1 1>&2 # stdout is for the folders alone

say() { echo "cluster-setup: $*"; }
fail() { say "failed: $*"; exit 1; }

as_root() {
  if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

# Sets $postgres to the newest of this machine's, if there is one.
find_postgres() {
  local candidate version
  postgres=
  for candidate in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V); do
    version=${candidate%/bin}
    version=${version##*/}
    if [[ -x $candidate/initdb && -x $candidate/postgres && $version =~ ^[0-9]+$ && $version -ge $OLDEST_POSTGRES ]]; then postgres=$candidate; fi
  done
  [[ -n $postgres ]]
}

apt_install() {
  local install=(as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "$1")
  say "installing apt package: $1"
  "${install[@]}" && return
  # Images often come without an index, or with one that names packages which are gone.
  say "trying again with a fresh apt index"
  as_root apt-get -q update || fail "no PostgreSQL: apt-get update; check the network and /etc/apt"
  "${install[@]}" || fail "no PostgreSQL: apt-get install $1 (see above)"
}

restore_create_cluster() {
  [[ ! -e $CREATE_CLUSTER.vmferry ]] || as_root mv "$CREATE_CLUSTER.vmferry" "$CREATE_CLUSTER"
}

# Debian's package makes a database cluster on port 5432 and starts it, now and at each boot. Only its first installation does, and only if
# postgresql-common, which comes first, is not told otherwise: with no cluster its service has nothing to start.
install_postgres() {
  command -v apt-get >/dev/null || fail "no PostgreSQL in /usr/lib/postgresql, and no apt-get to install it with"
  ((EUID == 0)) || command -v sudo >/dev/null || fail "no PostgreSQL, not root and no sudo; as root run: scripts/cluster-setup.sh"
  apt_install postgresql-common
  restore_create_cluster # from one that was killed
  trap restore_create_cluster EXIT
  as_root cp -p "$CREATE_CLUSTER" "$CREATE_CLUSTER.vmferry"
  as_root sed -i -e '/^ *create_main_cluster\b/d' -e '$a create_main_cluster = false' "$CREATE_CLUSTER"
  apt_install postgresql
  restore_create_cluster
  find_postgres || fail "apt installed a PostgreSQL that is older than $OLDEST_POSTGRES, or not in /usr/lib/postgresql"
}

build_temporal() {
  local advice='install Go >= 1.25 (https://go.dev/dl), then run this again'
  local go version staged module began=$SECONDS
  go=$(command -v go || ls /usr/local/go/bin/go 2>/dev/null) || fail "no Temporal server for PostgreSQL, and no Go to build one: $advice"
  version=$("$go" env GOVERSION) # empty before Go 1.16
  version=${version#go}
  # From 1.21 on, Go fetches the toolchain that a module asks for; before, it fails late and obscurely.
  printf '%s\n' 1.21 "${version:-0}" | sort -VC || fail "no Temporal server for PostgreSQL, and Go ${version:-here} is too old to build one: $advice"
  local toolchain=auto
  printf '%s\n' 1.25 "$version" | sort -VC && toolchain=local
  say "building $SERVER with Go $version; this takes 2-5 minutes, once"
  staged=$(mktemp -d "$folder.XXXXXX")
  # shellcheck disable=SC2064 # the folder as it is now
  trap "chmod -R u+w '$staged'; rm -rf '$staged'" EXIT
  export GOTOOLCHAIN=$toolchain GOFLAGS='' CGO_ENABLED=0
  GOBIN=$staged nice -n 19 "$go" install "${SERVER/@//cmd/server@}" "${SERVER/@//cmd/tools/sql@}" 2>&1 | { grep -v '^go: downloading' || true; } ||
    fail "go install of $SERVER (see above): check the network, or GOPROXY"
  module=$(cd "$staged" && "$go" list -m -f '{{.Dir}}' "$SERVER") && [[ -d $module/schema ]] || fail "no schema of $SERVER in Go's module cache"
  cp -r "$module/schema/postgresql/v12" "$staged/schema"
  # The module cache is read-only; who removes our cache should not have to know. The folder appears by one rename, never half.
  chmod -R u+w,go+rX "$staged"
  mv "$staged/server" "$staged/temporal-server"
  mv "$staged/sql" "$staged/temporal-sql-tool"
  rm -rf "$folder"
  mv -T "$staged" "$folder"
  trap - EXIT
  say "built the Temporal server in $((SECONDS - began)) s"
}

mkdir -p "$cache" 2>/dev/null && [[ -w $cache ]] || fail "cannot write to $cache; set VMFERRY_CACHE to a folder that can be written"
exec 9>"$cache/.cluster-setup.lock"
flock -n 9 || { say "waiting for another set-up to end"; flock 9; }
rm -rf "$folder".?????? # what a killed one left: with the lock held, nobody works in these
find_postgres || install_postgres
[[ -x $folder/temporal-server ]] || build_temporal
printf '%s\n' "$folder" "$postgres" >&3
