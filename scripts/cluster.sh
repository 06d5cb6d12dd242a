#!/usr/bin/env bash
# Runs test/cluster: real moves on a Temporal server on PostgreSQL, with two control workers of which one is killed. Arguments go to Jest.
# The first run builds the server (scripts/cluster-setup.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
programs=$(scripts/cluster-setup.sh)
{ read -r VMFERRY_CLUSTER_TEMPORAL; read -r VMFERRY_CLUSTER_POSTGRES; } <<<"$programs"
export VMFERRY_CLUSTER_TEMPORAL VMFERRY_CLUSTER_POSTGRES
# jest.config.js keeps this folder out of `npm test` by the patterns that are replaced here.
exec npx jest --testMatch '**/test/cluster/*.test.ts' --testPathIgnorePatterns /node_modules/ --runInBand "$@"
