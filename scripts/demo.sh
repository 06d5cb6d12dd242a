#!/usr/bin/env bash
# Sets the machine up if need be, then runs the demo. Arguments go to the demo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VMFERRY_TEMPORAL=$(scripts/setup.sh --print-temporal)
export VMFERRY_TEMPORAL
exec node dist/demo/main.js "$@"
