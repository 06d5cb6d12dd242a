#!/usr/bin/env bash
# Sets the machine up if need be, then checks types, lint, docs/api.md and behaviour. Arguments go to Jest.
# The last line on stdout is `N passed, N failed`; it is Jest's own if Jest was reached.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() {
  "$@" >&2 || { echo "test: failed: $*" >&2; echo '0 passed, 1 failed'; exit 1; }
}

# docs/api.md is what typedoc makes of the code's comments.
api_is_current() {
  local made
  made=$(mktemp -d)
  npx typedoc --out "$made" && diff -u docs/api.md "$made/api.md" || { echo 'docs/api.md is not what the code says: npm run docs:api' >&2; rm -rf "$made"; return 1; }
  rm -rf "$made"
}

step scripts/setup.sh
VMFERRY_TEMPORAL=$(scripts/setup.sh --no-build --print-temporal 2>/dev/null)
export VMFERRY_TEMPORAL
npm run --silent typecheck >&2 &
types=$!
step npm run --silent lint
step wait "$types"
step api_is_current
# What a simulation leaves running in the tests' own process must not hold CI.
exec npx jest --maxWorkers=2 --forceExit "$@"
