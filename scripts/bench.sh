#!/usr/bin/env bash
# Sets the machine up if need be, then runs one benchmark: scripts/bench.sh NAME [arguments].
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VMFERRY_TEMPORAL=$(scripts/setup.sh --print-temporal)
export VMFERRY_TEMPORAL
name=$1
shift
exec node "dist/bench/$name.js" "$@"
