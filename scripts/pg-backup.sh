#!/bin/sh
# The old name of `scripts/inv db.backup`.
set -eu

self=$(readlink -f -- "$0")

usage() {
    cat <<'END'
Usage: scripts/pg-backup.sh [type] [description]

Takes a backup of the database into backups/postgres/.

  type          lower-case letters, digits and _   (default: manual)
  description   a few words, in quotes             (default: Manual backup)
  --help        show this and exit

The same with more choices: scripts/inv --help db.backup
END
}

refuse() {
    printf '%s\nTry: %s\n' "$1" "$2" >&2
    exit 2
}

for arg; do
    case $arg in
        -h | --help) usage; exit ;;
        -*) refuse "Unknown option: $arg" "scripts/pg-backup.sh --help" ;;
    esac
done
if [ $# -gt 2 ]; then
    refuse "A type and a description are all there is to give, and here are $# words." \
        "put the description in quotes: scripts/pg-backup.sh $1 \"Before the update\""
fi

exec "${self%/*}/inv" db.backup "--type=${1:-manual}" "--description=${2:-Manual backup}"
