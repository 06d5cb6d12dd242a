#!/usr/bin/env bash
# Makes the images of docker-compose.yml, for test/compose: ours from the Dockerfile, the others from their registry, or, where none is reachable,
# stand-ins under the very names: the same programs in the same places, from Debian's packages, this machine's Node.js and Go's modules.
# Which are stand-ins is said. Run by scripts/compose-setup.sh, beside a daemon.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly PULL_SECONDS=120
export DOCKER_BUILDKIT=0

say() { echo "compose-images: $*" >&2; }
fail() { say "failed: $*"; exit 1; }

work=$(mktemp -d "${VMFERRY_CACHE:-$HOME/.cache/vmferry}/docker/images.XXXXXX")
trap 'rm -rf "$work" "$work.log"' EXIT

# The images that docker-compose.yml and the Dockerfile name, by what they are.
pinned() { grep -ohE "(image: |BASE=)$1:[^ ]+" docker-compose.yml Dockerfile | sed -E 's/^(image: |BASE=)//' | sort -u; }
node=$(pinned node) temporal=$(pinned temporalio/temporal) postgres=$(pinned postgres) server=$(pinned temporalio/server) tools=$(pinned temporalio/admin-tools) ui=$(pinned temporalio/ui)

build() { # <tag> [docker build's arguments]
  local tag=$1
  shift
  docker build --quiet --force-rm --network host --tag "$tag" "$@" >"$work.log" 2>&1 || { tail -40 "$work.log" >&2; fail "building $tag (see above)"; }
}

cluster=
# What the cluster test is made of; built here only if a stand-in needs it.
cluster_programs() {
  [[ -z $cluster ]] || return 0
  cluster=$(scripts/cluster-setup.sh) || fail "scripts/cluster-setup.sh (see above)"
  cluster=${cluster%%$'\n'*}
}

stand_in_node() {
  mkdir "$work/root"
  debootstrap --variant=minbase --include=ca-certificates,libstdc++6 bookworm "$work/root" >"$work/debootstrap.log" 2>&1 || fail "debootstrap: $(tail -3 "$work/debootstrap.log")"
  rm -rf "$work"/root/var/cache/apt/*.bin "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
  install -D "$(readlink -f "$(command -v node)")" "$work/root/usr/local/bin/node"
  mkdir -p "$work/root/usr/local/lib/node_modules"
  cp -r "$(dirname "$(readlink -f "$(command -v npm)")")/.." "$work/root/usr/local/lib/node_modules/npm"
  ln -s ../lib/node_modules/npm/bin/npm-cli.js "$work/root/usr/local/bin/npm"
  # A closed network may have a certificate authority of its own.
  cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/ca-certificates.crt"
  tar -C "$work/root" -c . | docker import --change 'ENV NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt' --change 'CMD ["node"]' - "$node" >/dev/null
  rm -rf "$work/root"
}

stand_in_temporal() {
  cp "$(scripts/setup.sh --no-build --print-temporal)" "$work/temporal"
  build "$temporal" --file - "$work" <<DOCKERFILE
FROM $node
RUN useradd --uid 1000 --create-home temporal
COPY temporal /usr/local/bin/temporal
USER temporal
WORKDIR /home/temporal
ENTRYPOINT ["/usr/local/bin/temporal"]
DOCKERFILE
  rm "$work/temporal"
}

stand_in_server() {
  cluster_programs
  cp "$cluster/temporal-server" "$work/"
  build "$server" --file - "$work" <<DOCKERFILE
FROM $node
RUN useradd --uid 1000 --create-home temporal
COPY temporal-server /usr/local/bin/
USER temporal
WORKDIR /etc/temporal
DOCKERFILE
  rm "$work/temporal-server"
}

stand_in_tools() {
  cluster_programs
  mkdir "$work/tools"
  cp -r "$cluster/temporal-sql-tool" "$cluster/schema" "$(scripts/setup.sh --no-build --print-temporal)" "$work/tools/"
  build "$tools" --file - "$work/tools" <<DOCKERFILE
FROM $node
COPY temporal temporal-sql-tool /usr/local/bin/
COPY schema /etc/temporal/schema/postgresql/v12
DOCKERFILE
  rm -rf "$work/tools"
}

# As the official image: a superuser with the password, a database of his name, and nothing but passwords for who comes by the network.
stand_in_postgres() {
  cat >"$work/entrypoint" <<'ENTRYPOINT'
#!/bin/sh
set -eu
if [ "$(id -u)" = 0 ]; then
  install -d -o postgres -g postgres -m 700 "$PGDATA"
  exec setpriv --reuid postgres --regid postgres --init-groups "$0"
fi
if [ ! -e "$PGDATA/PG_VERSION" ]; then
  umask 077
  printf %s "$POSTGRES_PASSWORD" >/tmp/password
  initdb --pgdata "$PGDATA" --username "$POSTGRES_USER" --pwfile /tmp/password --auth-host scram-sha-256 --auth-local trust --encoding UTF8
  rm /tmp/password
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  echo "CREATE DATABASE $POSTGRES_USER" | postgres --single -D "$PGDATA" postgres
fi
exec postgres -D "$PGDATA" -c 'listen_addresses=*' -c unix_socket_directories=/tmp
ENTRYPOINT
  chmod 755 "$work/entrypoint"
  build "$postgres" --file - "$work" <<DOCKERFILE
FROM $node
RUN apt-get update -q && apt-get install -q -y --no-install-recommends postgresql && ln -s /usr/lib/postgresql/* /usr/lib/postgresql/any
ENV PATH=/usr/lib/postgresql/any/bin:/usr/local/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/data
COPY entrypoint /usr/local/bin/entrypoint
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
ENTRYPOINT ["entrypoint"]
DOCKERFILE
  rm "$work/entrypoint"
}

# The server of the UI without the image's template of its configuration: it hears of Temporal by the same variable.
stand_in_ui() {
  mkdir "$work/ui"
  go=$(command -v go || ls /usr/local/go/bin/go 2>/dev/null) || fail "no Go to build the UI's server with"
  # As a dependency: `go install` refuses a module with `replace`.
  (cd "$work/ui" && printf 'module ui\n\ngo 1.24\n' >go.mod && export CGO_ENABLED=0 GOFLAGS='' && "$go" get -tool "github.com/temporalio/ui-server/v2/cmd/server@v${ui#*:}" &&
    nice "$go" build -o server github.com/temporalio/ui-server/v2/cmd/server) >"$work.log" 2>&1 || { tail -20 "$work.log" >&2; fail "building the UI's server"; }
  build "$ui" --file - "$work/ui" <<DOCKERFILE
FROM $node
COPY server /home/ui-server/ui-server
WORKDIR /home/ui-server
RUN mkdir config && chown 1000 config
USER 1000
CMD ["sh", "-c", "printf 'temporalGrpcAddress: %s\\nport: 8080\\nenableUi: true\\n' \"\$TEMPORAL_ADDRESS\" >config/docker.yaml && exec ./ui-server --env docker start"]
DOCKERFILE
  rm -rf "$work/ui"
}

for image in "$node" "$temporal" "$postgres" "$server" "$tools" "$ui"; do
  docker image inspect "$image" >/dev/null 2>&1 && continue
  timeout "$PULL_SECONDS" docker pull --quiet "$image" >/dev/null 2>"$work/pull" && { say "pulled $image"; continue; }
  say "$image cannot be pulled ($(tail -1 "$work/pull" | cut -c1-120)): making a stand-in"
  case $image in
    "$node") stand_in_node ;;
    "$temporal") stand_in_temporal ;;
    "$postgres") stand_in_postgres ;;
    "$server") stand_in_server ;;
    "$tools") stand_in_tools ;;
    "$ui") stand_in_ui ;;
  esac
done

version=${VMFERRY_VERSION:-dev}
for target in hypervisor agent control; do
  began=$SECONDS
  build "vmferry/$target:$version" --target "$target" .
  say "vmferry/$target:$version: $(docker image inspect --format '{{.Size}}' "vmferry/$target:$version" | numfmt --to=iec-i --suffix=B), built in $((SECONDS - began)) s"
done
# What earlier builds left without a name.
docker image prune --force >/dev/null
