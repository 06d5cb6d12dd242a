#!/usr/bin/env bash
# Sets the machine up if need be, then runs one benchmark: scripts/bench.sh NAME [arguments].
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VMFERRY_TEMPORAL=$(scripts/setup.sh --print-temporal)
export VMFERRY_TEMPORAL
name=$1
shift
if [[ $name == divergence && $EUID == 0 ]] && ! command -v gnuplot >/dev/null; then
  echo "bench: installing gnuplot-nox for the plot" >&2
  DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends gnuplot-nox >&2
fi
exec node "dist/bench/$name.js" "$@"
