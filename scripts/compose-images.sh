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
trap 'rm -rf "$work"' EXIT

# The images that docker-compose.yml and the Dockerfile name, by what they are.
pinned() { grep -ohE "(image: |BASE=)$1:[^ ]+" docker-compose.yml Dockerfile | sed -E 's/^(image: |BASE=)//' | sort -u; }
node=$(pinned node) temporal=$(pinned temporalio/temporal) postgres=$(pinned postgres) server=$(pinned temporalio/server) tools=$(pinned temporalio/admin-tools) ui=$(pinned temporalio/ui)

build() { # <tag> <context> [options]; a Dockerfile on stdin
  local tag=$1 context=$2
  shift 2
  docker build --quiet --network host --tag "$tag" --file - "$@" "$context" >/dev/null || fail "building $tag"
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
  build "$temporal" "$work" <<DOCKERFILE
FROM $node
RUN useradd --uid 1000 --create-home temporal
COPY temporal /usr/local/bin/temporal
USER temporal
WORKDIR /home/temporal
ENTRYPOINT ["/usr/local/bin/temporal"]
DOCKERFILE
  rm "$work/temporal"
}

for image in "$node" "$temporal"; do
  docker image inspect "$image" >/dev/null 2>&1 && continue
  timeout "$PULL_SECONDS" docker pull --quiet "$image" >/dev/null 2>"$work/pull" && { say "pulled $image"; continue; }
  say "$image cannot be pulled ($(tail -1 "$work/pull" | cut -c1-120)): making a stand-in"
  case $image in
    "$node") stand_in_node ;;
    "$temporal") stand_in_temporal ;;
  esac
done

version=${VMFERRY_VERSION:-dev}
for target in hypervisor agent control; do
  began=$SECONDS
  docker build --quiet --network host --target "$target" --tag "vmferry/$target:$version" . >/dev/null || fail "docker build --target $target"
  say "vmferry/$target:$version: $(docker image inspect --format '{{.Size}}' "vmferry/$target:$version" | numfmt --to=iec-i --suffix=B), built in $((SECONDS - began)) s"
done
# What earlier builds left without a name.
docker image prune --force >/dev/null
