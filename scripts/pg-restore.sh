#!/bin/sh
# The old name of `scripts/inv db.restore`. A shell glob may give it all the files of one backup.
set -eu

self=$(readlink -f -- "$0")

usage() {
    cat <<'END'
Usage: scripts/pg-restore.sh <file>... [--force] [--data-only | --schema-only] [--clean]
                             [--confirm <database>]

Restores a backup into the database, after asking. Several files of one backup count as one.

  --force         do not ask
  --data-only     rows only: the schema stays as it is
  --schema-only   structure only, no rows
  --clean         drop existing objects first; a full restore does so anyway
  --confirm NAME  the name of the database, where that is protected
  --help          show this and exit

The same with more choices: scripts/inv --help db.restore
END
}

refuse() {
    printf '%s\nTry: %s\n' "$1" "$2" >&2
    exit 2
}

# A word as it has to be typed.
quoted() {
    case $1 in
        *[!A-Za-z0-9_./-]*) printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")" ;;
        *) printf '%s' "$1" ;;
    esac
}

# Sets, for a file: `backup`, equal for all files of one backup; `rank`, higher for the better
# format and for a file than for a link to it; `stamp`, its time as a number, 0 where the name tells none.
look_at() {
    path=$1
    link=0
    if [ -L "$path" ]; then
        link=1
        target=$(readlink -- "$path")
        case $target in
            /*) path=$target ;;
            *) path=${path%/*}/$target ;;
        esac
    fi
    case $path in
        *.dump) rank=8 stem=${path%.dump} ;;
        *.tar) rank=6 stem=${path%.tar} ;;
        *.sql.gz) rank=4 stem=${path%.sql.gz} ;;
        *.sql) rank=2 stem=${path%.sql} ;;
        *.info) rank=0 stem=${path%.info} ;;
        *) rank=2 stem= ;;
    esac
    [ "$rank" -eq 0 ] || rank=$((rank - link))
    [ "$link" -eq 0 ] || [ -e "$1" ] || rank=0
    backup=$path
    stamp=0
    case ${stem##*/} in
        backup_?*_[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]_[0-9][0-9][0-9][0-9][0-9][0-9])
            backup=$stem
            stamp=${stem#"${stem%????????_??????}"}
            stamp=${stamp%_*}${stamp#*_}
            ;;
    esac
}

newline='
'
forget() {
    seen=$newline
    backups=0
    newest=
    newest_stamp=-1
    newest_rank=-1
}
forget

for arg; do
    case $arg in
        -h | --help) usage; exit ;;
    esac
done

# Options go to the end of "$@" and files leave it, so that it ends up as the options alone.
count=$#
while [ "$count" -gt 0 ]; do
    arg=$1
    count=$((count - 1))
    shift
    case $arg in
        '') continue ;;
        --force | --data-only | --schema-only | --clean | --confirm=*)
            set -- "$@" "$arg"
            continue
            ;;
        --confirm)
            [ "$count" -gt 0 ] || refuse "--confirm needs the database's name." "scripts/pg-restore.sh --help"
            name=$1
            count=$((count - 1))
            shift
            set -- "$@" "--confirm=$name"
            continue
            ;;
        -*) refuse "Unknown option: $arg" "scripts/pg-restore.sh --help; a file of that name is ./$arg" ;;
        */*) file=$arg ;;
        *) file=./$arg ;;
    esac
    # Not a file here: `latest`, or the name of a backup.
    [ -e "$file" ] || [ -L "$file" ] || file=$arg

    look_at "$file"
    # An .info or a dangling link says something only where there is nothing else.
    if [ "$rank" -eq 0 ] && [ "$newest_rank" -gt 0 ]; then continue; fi
    if [ "$rank" -gt 0 ] && [ "$newest_rank" -eq 0 ]; then forget; fi

    better=
    case $seen in
        *"$newline$backup$newline"*)
            [ "$backup" != "$newest_backup" ] || [ "$rank" -le "$newest_rank" ] || better=1
            ;;
        *)
            seen=$seen$backup$newline
            backups=$((backups + 1))
            [ "$stamp" -le "$newest_stamp" ] || better=1
            ;;
    esac
    if [ -n "$better" ]; then
        newest=$file newest_backup=$backup newest_stamp=$stamp newest_rank=$rank
    fi
done

if [ "$backups" -eq 0 ]; then
    usage >&2
    exit 2
fi
if [ "$backups" -gt 1 ]; then
    said="These files belong to $backups different backups, and a restore takes one."
    [ "$newest_stamp" -gt 0 ] || refuse "$said" "scripts/pg-restore.sh with one of them"
    refuse "$said" "the newest: scripts/pg-restore.sh $(quoted "$newest")${*:+ $*}"
fi

exec "${self%/*}/inv" db.restore "$newest" "$@"
