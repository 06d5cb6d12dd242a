#!/usr/bin/env bash
# Kills and cuts things at chosen steps of real migrations, on real processes (test/chaos), and looks at what comes of it.
#
#   npm run test:chaos -- [--seed N] [--minutes M]            random cells; prints the seed, and each cell that fails
#   npm run test:chaos -- --all [--minutes M]                 every step with every fault; writes the table of docs/reliability.md
#   npm run test:chaos -- --all --step NAME --fault NAME      only these; several are separated by semicolons
#     --resume         leaves out the cells that the results say held
#     --results FILE   where verdicts are kept, one line of JSON each (default test-results/chaos.jsonl)
#     --post-copy      the guest's memory never converges, and goes by post-copy
#     --newer-qemu     on the QEMU of scripts/newer-qemu.sh, in place of this machine's
#     --keep FOLDER    where the logs of cells that fail are kept
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

results=test-results/chaos.jsonl
while (($#)); do
  case $1 in
    --seed) export VMFERRY_CHAOS_SEED=$2; shift ;;
    --minutes) export VMFERRY_CHAOS_MINUTES=$2; shift ;;
    --all) export VMFERRY_CHAOS_ALL=1 VMFERRY_CHAOS_TABLE=${VMFERRY_CHAOS_TABLE-docs/reliability.md} VMFERRY_CHAOS_MINUTES=${VMFERRY_CHAOS_MINUTES:-600} ;;
    --post-copy) export VMFERRY_CHAOS_POST_COPY=1 ;;
    --newer-qemu) export VMFERRY_CHAOS_NEWER_QEMU=1 ;;
    --resume) export VMFERRY_CHAOS_RESUME=1 ;;
    --step) export VMFERRY_CHAOS_STEP=$2; shift ;;
    --fault) export VMFERRY_CHAOS_FAULT=$2; shift ;;
    --results) results=$2; shift ;;
    --keep) export VMFERRY_CHAOS_KEEP=$2; shift ;;
    *) sed -n '2,12s/^# \?//p' "$0" >&2; echo "chaos: unknown option $1" >&2; exit 2 ;;
  esac
  shift
done

scripts/setup.sh
VMFERRY_TEMPORAL=$(scripts/setup.sh --no-build --print-temporal 2>/dev/null)
mkdir -p "$(dirname "$results")"
VMFERRY_CHAOS_RESULTS=$(realpath "$results")
export VMFERRY_TEMPORAL VMFERRY_CHAOS_RESULTS
exec npx jest --runInBand --testMatch '**/test/chaos/campaign.ts' --forceExit
