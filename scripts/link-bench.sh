#!/usr/bin/env bash
# Runs a benchmark in a network namespace whose loopback device it may limit: scripts/link-bench.sh limit|parallel [options of bench/NAME.ts]
#
# Both hosts have the address 10.77.0.1 there; Temporal and the control worker use 127.0.0.1, which is never limited (bench/link.ts). Disks and run files are
# in one folder on tmpfs. Needs root. Installs nbdcopy for `limit` if it is missing. Where it cannot run it says why, and ends well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "bench: $*" >&2; }
skip() { say "skipped: $*"; exit 0; }

name=$1
shift
VMFERRY_TEMPORAL=$(scripts/setup.sh --print-temporal)
export VMFERRY_TEMPORAL
[[ ${1:-} != --help ]] || exec node "dist/bench/$name.js" --help
((EUID == 0)) || skip "it makes a network namespace: run it as root"
for program in ip tc nsenter; do
  command -v "$program" >/dev/null || skip "no $program here (packages iproute2 and util-linux)"
done
[[ -d /dev/shm ]] || skip "no /dev/shm: the disks of this kind of machine are too uneven to compare anything on them"
if [[ $name == limit ]] && ! command -v nbdcopy >/dev/null; then
  command -v apt-get >/dev/null || skip "no nbdcopy here, and no apt-get to install it with (package libnbd-bin)"
  say "installing apt packages: libnbd-bin"
  DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends libnbd-bin >&2 || skip "apt-get install libnbd-bin failed (see above)"
fi

namespace=vmfl-$$
folder=$(mktemp -d "${VMFERRY_LAB:-/dev/shm}/vmfl.XXXXXX")
# Whatever lives in this namespace is of this bench.
clean_up() {
  local pids
  pids=$(ip netns pids "$namespace" 2>/dev/null || true)
  # shellcheck disable=SC2086 # one word a process
  [[ -z $pids ]] || kill -KILL $pids 2>/dev/null || true
  ip netns delete "$namespace" 2>/dev/null || true
  rm -rf "$folder"
}
trap clean_up EXIT

ip netns add "$namespace" || skip "no network namespace can be made here"
ip -n "$namespace" link set lo up
ip -n "$namespace" address add 10.77.0.1/32 dev lo
# Not exec: the trap is this shell's.
nsenter --net="/run/netns/$namespace" node "dist/bench/$name.js" --folder "$folder" "$@"
