#!/usr/bin/env bash
# Evacuates a rack of simulated fleets of several sizes (test/simulated/scale.ts), and prints what it took: npm run bench:fleet -- [GUESTS …]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
VMFERRY_TEMPORAL=$(scripts/setup.sh --no-build --print-temporal 2>/dev/null)
export VMFERRY_TEMPORAL VMFERRY_SCALE_GUESTS="${*:-100 320 1000}"
exec npx jest --runInBand --testMatch '**/test/simulated/scale.ts' --forceExit
