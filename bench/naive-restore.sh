#!/usr/bin/env bash
# What a restore is measured against: a new database, filled by PostgreSQL's own tools the plain way; from an archive by
# two of pg_restore's jobs, then analyzed and counted, as ours is.
# usage: naive-restore.sh FILE SERVER_URL DATABASE_NAME (SERVER_URL without a database, with a / at its end)
set -euo pipefail
file=$1 server=$2 name=$3
psql -Xq --command="create database $name template template0" "${server}postgres"
case $file in
*.sql.gz)
    gzip -dc "$file" | psql -Xq --output=/dev/null "$server$name"
    ;;
*)
    pg_restore --jobs=2 --dbname="$server$name" "$file"
    psql -Xq --command=analyze "$server$name"
    psql -Xq --output=/dev/null "$server$name" <<'SQL'
select format('select count(*) from %I.%I', schemaname, tablename) from pg_tables where schemaname = 'public' \gexec
SQL
    ;;
esac
