#!/usr/bin/env bash
# Evacuates a rack of simulated fleets of several sizes (test/simulated/scale.ts), and prints what it took and how it grows:
#   npm run bench:fleet -- [GUESTS …] [--controls N] [--at-once N] [--postgres SHARDS]
#     --controls    control workers, each a process (default 1)
#     --at-once     the limit of moves at once in the fleet (default 60)
#     --postgres    Temporal on PostgreSQL with so many history shards, instead of the dev server (scripts/cluster-setup.sh installs it)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
sizes=()
while (($#)); do
  case $1 in
    --controls) export VMFERRY_SCALE_CONTROLS=${2:?--controls needs a number}; shift ;;
    --at-once) export VMFERRY_SCALE_AT_ONCE=${2:?--at-once needs a number}; shift ;;
    --postgres) export VMFERRY_SCALE_SHARDS=${2:?--postgres needs a number of shards}; shift ;;
    [1-9]*) sizes+=("$1") ;;
    *) echo "bench:fleet: unknown option $1; known are numbers of guests, --controls, --at-once and --postgres" >&2; exit 1 ;;
  esac
  shift
done
scripts/setup.sh
VMFERRY_TEMPORAL=$(scripts/setup.sh --no-build --print-temporal 2>/dev/null)
if [[ -n ${VMFERRY_SCALE_SHARDS:-} ]]; then
  programs=$(scripts/cluster-setup.sh)
  { read -r VMFERRY_CLUSTER_TEMPORAL; read -r VMFERRY_CLUSTER_POSTGRES; } <<<"$programs"
  export VMFERRY_CLUSTER_TEMPORAL VMFERRY_CLUSTER_POSTGRES
fi
if ((${#sizes[@]})); then export VMFERRY_SCALE_GUESTS="${sizes[*]}"; fi
export VMFERRY_TEMPORAL
exec npx jest --runInBand --testMatch '**/test/simulated/scale.ts' --forceExit
