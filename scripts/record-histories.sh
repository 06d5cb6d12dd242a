#!/usr/bin/env bash
# Records the histories that test/replay replays anew: runs real migrations, good and bad, and keeps what Temporal has of each.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VMFERRY_TEMPORAL=$(scripts/setup.sh --no-build --print-temporal)
VMFERRY_RECORD=$PWD/test/replay/histories
export VMFERRY_TEMPORAL VMFERRY_RECORD
rm -rf "$VMFERRY_RECORD"
mkdir -p "$VMFERRY_RECORD"
exec npx jest --runInBand test/migration/moves test/migration/rules test/migration/repair test/migration/fence test/migration/post-copy-faults "$@"
