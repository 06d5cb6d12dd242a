#!/usr/bin/env bash
# Runs a command beside a Docker daemon of its own, which ends with it: nothing of this machine's own Docker is seen or touched. Images are kept
# in VMFERRY_CACHE/docker, where scripts/compose-setup.sh puts Compose. Containers, networks, mounts and control groups are gone afterwards; what was there is said, and is a failure.
#
#   scripts/with-dockerd.sh [dockerd's options] -- COMMAND ...
set -euo pipefail

data=${VMFERRY_CACHE:-$HOME/.cache/vmferry}/docker
options=()
while [[ ${1:-} != -- ]]; do
  (($#)) || { sed -n '2,5s/^# \?//p' "$0" >&2; exit 2; }
  options+=("$1")
  shift
done
shift

say() { echo "dockerd: $*" >&2; }

mkdir -p "$data"
exec 8>"$data/.lock"
flock -n 8 || { say "waiting for another to end"; flock 8; }
folder=$(mktemp -d /tmp/vmd-XXXXXX)
export DOCKER_HOST=unix://$folder/docker.sock DOCKER_CONFIG=$folder/config
mkdir -p "$DOCKER_CONFIG/cli-plugins"
[[ ! -x $data/docker-compose ]] || ln -s "$data/docker-compose" "$DOCKER_CONFIG/cli-plugins/docker-compose"

end_dockerd() {
  kill "$daemon" 2>/dev/null || true
  wait "$daemon" 2>/dev/null || true
  find /sys/fs/cgroup -depth -type d -path "*/vmferry-dockerd*" -exec rmdir {} + 2>/dev/null || true
  grep -F " $folder/" /proc/mounts | cut -d' ' -f2 | xargs -r umount || true
  rm -rf "$folder"
}

# Without the lock: a container must not hold it longer than this script.
dockerd --data-root "$data/data" --exec-root "$folder/exec" --pidfile "$folder/pid" --host "$DOCKER_HOST" --cgroup-parent /vmferry-dockerd \
  --storage-driver overlay2 --log-level warn "${options[@]}" >"$folder/log" 2>&1 8>&- &
daemon=$!
trap end_dockerd EXIT
trap 'exit 130' INT TERM
for ((tries = 0; ; tries++)); do
  docker version >/dev/null 2>&1 && break
  if ((tries == 300)) || ! kill -0 "$daemon" 2>/dev/null; then
    say "failed: it does not answer; it said:"
    tail -5 "$folder/log" >&2
    exit 1
  fi
  sleep 0.1
done

code=0
"$@" 8>&- || code=$?

left=$(docker ps --all --format 'container {{.Names}}'; docker volume ls --format 'volume {{.Name}}'; docker network ls --filter type=custom --format 'network {{.Name}}')
if [[ -n $left ]]; then
  say "failed: left behind, and removed now:"$'\n'"$left"
  docker ps --all --quiet | xargs -r docker rm --force --volumes >/dev/null
  docker network prune --force >/dev/null
  docker volume ls --quiet | xargs -r docker volume rm >/dev/null
  ((code)) || code=1
fi
exit "$code"
