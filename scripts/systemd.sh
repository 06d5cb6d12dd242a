#!/usr/bin/env bash
# Runs test/systemd: boots a systemd of its own, and restarts, kills and stops the agent's unit under a running guest. Arguments go to Jest. Not part of
# `npm test`: it needs root, systemd's package, and a kernel that lets namespaces have a control group of version 2. Takes a minute.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

((EUID == 0)) || { echo "systemd: failed: namespaces need root" >&2; exit 1; }
[[ -x /lib/systemd/systemd ]] || { echo "systemd: failed: no /lib/systemd/systemd; install the package systemd" >&2; exit 1; }
scripts/setup.sh
VMFERRY_TEMPORAL=$(scripts/setup.sh --no-build --print-temporal 2>/dev/null)
export VMFERRY_TEMPORAL
exec npx jest --testMatch '**/test/systemd/*.test.ts' --testPathIgnorePatterns /node_modules/ --runInBand --forceExit "$@"
