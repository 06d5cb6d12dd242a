#!/usr/bin/env bash
# What test/compose needs: apt's Docker, Compose v2, and the images of docker-compose.yml, all kept in VMFERRY_CACHE/docker. Installs only what is
# missing and says so; run again, it only looks, and builds our images again if their sources changed. Needs root. Nothing is left running.
#
#   scripts/compose-setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly COMPOSE=v2.40.3

cache=${VMFERRY_CACHE:-$HOME/.cache/vmferry}/docker
say() { echo "compose-setup: $*" >&2; }
fail() { say "failed: $*"; exit 1; }

((EUID == 0)) || fail "Docker's daemon needs root"
missing=()
for program in dockerd:docker.io containerd:containerd runc:runc iptables:iptables debootstrap:debootstrap ip:iproute2; do
  command -v "${program%:*}" >/dev/null || missing+=("${program#*:}")
done
if ((${#missing[@]})); then
  say "installing apt packages: ${missing[*]}"
  # Debian starts a service that it installs. We want none.
  policy=/usr/sbin/policy-rc.d
  [[ -e $policy ]] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; trap 'rm -f /usr/sbin/policy-rc.d' EXIT; }
  apt-get -q update >&2
  DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}" >&2 || fail "apt-get install ${missing[*]}"
  rm -f $policy
fi

mkdir -p "$cache"
if [[ ! -x $cache/docker-compose ]]; then
  go=$(command -v go || ls /usr/local/go/bin/go 2>/dev/null) || fail "no Docker Compose, and no Go to build it"
  say "building Docker Compose $COMPOSE; this takes 5-10 minutes, once"
  began=$SECONDS
  staged=$(mktemp -d "$cache/compose.XXXXXX")
  trap 'rm -rf "$staged"' EXIT
  # As a tool of a module: `go install` refuses a module with `exclude`.
  (cd "$staged" && printf 'module compose\n\ngo 1.24\n' >go.mod && export CGO_ENABLED=0 GOFLAGS='' &&
    "$go" get -tool "github.com/docker/compose/v2/cmd@$COMPOSE" && nice "$go" build -ldflags "-s -w -X github.com/docker/compose/v2/internal.Version=$COMPOSE" -o docker-compose github.com/docker/compose/v2/cmd) 2>&1 |
    { grep -v '^go: \(downloading\|added\)' >&2 || true; } || fail "building Docker Compose (see above)"
  mv "$staged/docker-compose" "$cache/docker-compose"
  say "built Docker Compose in $((SECONDS - began)) s"
fi

# Neither bridge nor rules in this machine's network: builds use that of the machine itself.
exec unshare --mount -- scripts/with-dockerd.sh --bridge=none --iptables=false --ip-forward=false --ip-masq=false -- scripts/compose-images.sh
