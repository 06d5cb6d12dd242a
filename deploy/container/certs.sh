#!/bin/sh
# Makes a certificate authority the first time, and certificates of both hosts; gives each host its own and nothing else. Moved guests go by them.
set -eu
vmferry certs init /certs/ca --host host-a --host host-b
for host in host-a host-b; do
  cp -p /certs/ca/$host/* /certs/$host/
done
