#!/bin/sh
# Waits for the server, and makes the namespace the first time. Ended moves are found there for 30 days.
set -eu
until temporal operator cluster health >/dev/null 2>&1; do sleep 1; done
temporal operator namespace describe --namespace default >/dev/null 2>&1 || temporal operator namespace create --retention 720h --namespace default
# A frontend takes a few seconds to hear of it.
until temporal workflow count --namespace default >/dev/null 2>&1; do sleep 1; done
