#!/usr/bin/env bash
# Moves the test guest by vmferry and by libvirt in turn, over the same link, and compares: npm run bench:libvirt -- [options of bench/libvirt.ts]
#
# Three network namespaces: `a` and `b` are the hosts, with the link that guests travel by between them; `control` has Temporal, the control worker and
# the bench, each with a link of its own to both hosts. Everything lives below one folder on tmpfs. Needs root. Installs libvirt's daemon and client if
# they are missing, from packages that bring no service. Where it cannot run it says why, and ends well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "bench: $*" >&2; }
skip() { say "skipped: $*"; exit 0; }

((EUID == 0)) || skip "it makes network namespaces and starts libvirt's daemons: run it as root"
for program in ip tc nsenter unshare; do
  command -v "$program" >/dev/null || skip "no $program here (packages iproute2 and util-linux)"
done
[[ -d /dev/shm ]] || skip "no /dev/shm: the disks of this kind of machine are too uneven to compare anything on them"
VMFERRY_TEMPORAL=$(scripts/setup.sh --print-temporal)
export VMFERRY_TEMPORAL
[[ ${1:-} != --help ]] || exec node dist/bench/libvirt.js --help
if ! command -v libvirtd >/dev/null || ! command -v virsh >/dev/null; then
  command -v apt-get >/dev/null || skip "no libvirtd and virsh here, and no apt-get to install them with"
  say "installing apt packages: libvirt-daemon libvirt-clients"
  DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends libvirt-daemon libvirt-clients >&2 ||
    skip "apt-get install libvirt-daemon libvirt-clients failed (see above)"
fi

prefix=vmfb-$$
folder=$(mktemp -d /dev/shm/vmfb.XXXXXX)
# Whatever lives in these namespaces is of this bench. Their mounts end with the processes.
clean_up() {
  local name pids
  for name in a b control; do
    pids=$(ip netns pids "$prefix-$name" 2>/dev/null || true)
    # shellcheck disable=SC2086 # one word a process
    [[ -z $pids ]] || kill -KILL $pids 2>/dev/null || true
    ip netns delete "$prefix-$name" 2>/dev/null || true
  done
  rm -rf "$folder"
}
trap clean_up EXIT

connect() { # <namespace> <address> <namespace> <address> <name of the interface on both sides>
  ip -n "$prefix-$1" link add "$5" type veth peer name "$5" netns "$prefix-$3"
  ip -n "$prefix-$1" address add "$2/30" dev "$5"
  ip -n "$prefix-$3" address add "$4/30" dev "$5"
  ip -n "$prefix-$1" link set "$5" up
  ip -n "$prefix-$3" link set "$5" up
}

for name in a b control; do
  ip netns add "$prefix-$name" || skip "no network namespace can be made here"
  ip -n "$prefix-$name" link set lo up
done
connect a 10.77.0.1 b 10.77.0.2 guests || skip "no veth pair can be made here"
connect control 10.77.1.1 a 10.77.1.2 control-a
connect control 10.77.2.1 b 10.77.2.2 control-b
# Not exec: the trap is this shell's.
nsenter --net="/run/netns/$prefix-control" node dist/bench/libvirt.js --prefix "$prefix" --folder "$folder" "$@"
