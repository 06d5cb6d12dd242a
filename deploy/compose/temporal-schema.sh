#!/bin/sh
# Makes Temporal's two databases the first time, and brings their schema to that of the server's release. The SQL_* variables say where.
set -eu
schema=${SCHEMA:-/etc/temporal/schema/postgresql/v12}
for kind in temporal visibility; do
  database=temporal
  [ "$kind" = temporal ] || database=temporal_visibility
  update="temporal-sql-tool --database $database update-schema --schema-dir $schema/$kind/versioned"
  if ! $update; then
    temporal-sql-tool --database "$database" create-database
    temporal-sql-tool --database "$database" setup-schema --version 0.0
    $update
  fi
done
