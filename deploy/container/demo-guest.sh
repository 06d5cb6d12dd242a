#!/bin/sh
# Makes the demo guest on host-a the first time, and starts it wherever it lives: it may have been moved since.
set -eu
if ! vmferry vm show demo >/dev/null 2>&1; then
  for disk in 0 1; do
    [ -e "/srv/images/demo-$disk.raw" ] || qemu-img create -q -f raw "/srv/images/demo-$disk.raw" 128M
  done
  vmferry vm define /etc/vmferry/demo.yaml --host host-a
fi
vmferry vm start demo
