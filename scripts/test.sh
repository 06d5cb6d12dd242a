#!/usr/bin/env bash
# Sets the machine up if need be, then checks types, lint and behaviour. Arguments go to Jest.
# The last line on stdout is `N passed, N failed`; it is Jest's own if Jest was reached.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() {
  "$@" >&2 || { echo "test: failed: $*" >&2; echo '0 passed, 1 failed'; exit 1; }
}

step scripts/setup.sh
VMFERRY_TEMPORAL=$(scripts/setup.sh --no-build --print-temporal 2>/dev/null)
export VMFERRY_TEMPORAL
step npm run --silent typecheck
step npm run --silent lint
# What a simulation leaves running in the tests' own process must not hold CI.
exec npx jest --runInBand --forceExit "$@"
