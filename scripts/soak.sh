#!/usr/bin/env bash
# Moves one guest back and forth, by default 200 times, with agents and control workers restarted at random in the second half (test/chaos/soak.ts):
#   npm run test:soak -- [MOVES]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
VMFERRY_TEMPORAL=$(scripts/setup.sh --no-build --print-temporal 2>/dev/null)
mkdir -p test-results
export VMFERRY_TEMPORAL VMFERRY_SOAK_MOVES=${1:-200} VMFERRY_SOAK_RESULTS=$PWD/test-results/soak.jsonl
exec npx jest --runInBand --testMatch '**/test/chaos/soak.ts' --forceExit
