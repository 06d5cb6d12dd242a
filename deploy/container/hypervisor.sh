#!/bin/sh
# Keeps a launcher running in a container that stands for a machine, under an init that reaps. The guests are not its children's children to lose:
# a launcher that dies is started again, and they run on. SIGTERM switches the machine off: the launcher lets QEMU flush its guests' disks.
#
#   hypervisor.sh SOCKET
trap 'kill -TERM "$launcher"; wait "$launcher"; exit 0' TERM INT
while :; do
  node /usr/local/lib/vmferry/launcher-main.js "$1" &
  launcher=$!
  wait "$launcher"
  echo "hypervisor: the launcher ended with $?; it is started again" >&2
  sleep 1
done
