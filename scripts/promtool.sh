#!/usr/bin/env bash
# Prints the path of promtool, which checks Prometheus rules: the machine's own, or the one of Debian's package `prometheus`, of which nothing else
# is unpacked and no daemon installed. Kept in VMFERRY_CACHE (default ~/.cache/vmferry).
set -euo pipefail

command -v promtool && exit
folder=${VMFERRY_CACHE:-$HOME/.cache/vmferry}/promtool
if [[ ! -x $folder/promtool ]]; then
  mkdir -p "$folder"
  work=$(mktemp -d "$folder/XXXXXX")
  trap 'rm -rf "$work"' EXIT
  cd "$work"
  download() { apt-get -q download prometheus >&2; }
  # Images often come without an index.
  download || { if ((EUID == 0)); then apt-get -q update; else sudo apt-get -q update; fi >&2 && download; } ||
    { echo 'promtool: apt-get download prometheus failed: check the network, or put promtool on PATH' >&2; exit 1; }
  dpkg-deb --fsys-tarfile prometheus_*.deb | tar x ./usr/bin/promtool
  mv usr/bin/promtool "$folder/promtool"
fi
echo "$folder/promtool"
