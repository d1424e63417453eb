#!/usr/bin/env bash
# What we are measured against: the four steps a plain backup script takes, one after the other, each
# with the PostgreSQL tools' own defaults. Kept plain on purpose: making it faster would flatter nobody.
# usage: naive-backup.sh OUTPUT_PREFIX DATABASE_URL
set -euo pipefail
out=$1 url=$2
pg_dump "$url" >"$out.sql"
gzip --keep "$out.sql"
pg_dump --format=custom --file="$out.dump" "$url"
pg_dump --format=tar --file="$out.tar" "$url"
