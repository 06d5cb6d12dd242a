#!/usr/bin/env bash
# Runs test/compose: docker-compose.yml with a real Docker and a real Compose v2, a guest moved between its two hypervisors, then everything taken
# down. Arguments go to Jest. Not part of `npm test`: the first run builds for some 20 minutes (scripts/compose-setup.sh), others take 6. Needs root.
# Docker runs in a network, a mount and a process namespace of its own: this machine's network and firewall are not touched, and nothing outlives the run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
scripts/compose-setup.sh
echo "compose: running test/compose" >&2
exec unshare --net --mount --pid --fork --kill-child --mount-proc -- bash -c '
  ip link set lo up
  exec scripts/with-dockerd.sh -- npx jest --testMatch "**/test/compose/*.test.ts" --testPathIgnorePatterns /node_modules/ --runInBand --forceExit "$@"' compose "$@"
