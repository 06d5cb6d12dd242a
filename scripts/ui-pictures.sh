#!/usr/bin/env bash
# Takes the pictures of docs/temporal-ui.md anew: docs/ui/*.png. Look at each before it is committed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VMFERRY_TEMPORAL=$(scripts/setup.sh --print-temporal)
export VMFERRY_TEMPORAL VMFERRY_UI_PICTURES=1
npx jest --runInBand --forceExit test/ui/ui
for picture in docs/ui/*.png; do
  size=$(stat -c %s "$picture")
  ((size < 200000)) || { echo "$picture has $size bytes: too many for the repository" >&2; exit 1; }
done
