#!/usr/bin/env bash
# Records histories for test/replay: runs real migrations, good and bad, and keeps what Temporal has of each, beside those of earlier releases, whose
# workflows may still be under way somewhere. Arguments go to Jest, such as: test/migration/moves -t 'there and back'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VMFERRY_TEMPORAL=$(scripts/setup.sh --no-build --print-temporal)
VMFERRY_RECORD=$(mktemp -d)
export VMFERRY_TEMPORAL VMFERRY_RECORD
(($#)) || set -- test/migration/moves test/migration/rules test/migration/repair test/migration/fence test/migration/post-copy-faults
npx jest --runInBand --forceExit "$@"
for history in "$VMFERRY_RECORD"/*.json; do mv "$history" "test/replay/histories/$(basename "$history" .json)-$(date +%F).json"; done
rm -rf "$VMFERRY_RECORD"
